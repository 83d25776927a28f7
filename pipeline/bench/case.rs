//! Benchmark cases: operations, element types and shapes.

use longreel_kernels::{attend::KvDtype, cpu::Level, peak::Multiply};
use serde::Serialize;

/// An operation of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Causal attention of a whole prompt to itself.
    Attend,
    /// Attention of one token to a long cache.
    Decode,
    /// 512 tokens times a weight matrix.
    Linear,
    /// One token times a weight matrix.
    LinearOne,
    /// A 3 × 3 convolution of the frame tokenizer.
    Conv,
    /// Group normalization and SiLU of the frame tokenizer.
    GroupNorm,
    /// Root-mean-square normalization.
    RmsNorm,
    /// Rotary position embedding.
    Rope,
    /// The decoder's gated activation.
    Swiglu,
}

impl Op {
    /// Every operation, in the order of the table.
    pub const ALL: [Self; 9] = [
        Self::Attend,
        Self::Decode,
        Self::Linear,
        Self::LinearOne,
        Self::Conv,
        Self::GroupNorm,
        Self::RmsNorm,
        Self::Rope,
        Self::Swiglu,
    ];

    /// The name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attend => "attend",
            Self::Decode => "decode",
            Self::Linear => "linear",
            Self::LinearOne => "linear-one",
            Self::Conv => "conv",
            Self::GroupNorm => "group-norm",
            Self::RmsNorm => "rms-norm",
            Self::Rope => "rope",
            Self::Swiglu => "swiglu",
        }
    }

    /// Element types that it supports: of keys and values, of weights, or f32 only.
    fn dtypes(self) -> &'static [KvDtype] {
        match self {
            Self::Attend | Self::Decode => &KvDtype::ALL,
            Self::Linear | Self::LinearOne => &[KvDtype::F32, KvDtype::Bf16],
            _ => &[KvDtype::F32],
        }
    }
}

/// One operation on one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Case {
    /// The operation.
    pub op: Op,
    /// Element type of keys and values, or of weights.
    #[serde(serialize_with = "name_of")]
    pub dtype: KvDtype,
    /// Its extents.
    #[serde(flatten)]
    pub shape: Shape,
}

fn name_of<S: serde::Serializer>(dtype: &KvDtype, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_str(dtype.name())
}

/// The extents of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum Shape {
    /// Of attention.
    Attention {
        /// Tokens of the prompt, or of the cache.
        s: usize,
        /// Channels of one head.
        d: usize,
        /// Query heads.
        heads: usize,
        /// Key and value heads.
        kv_heads: usize,
    },
    /// Of a weight matrix and its input.
    Matrix {
        /// Tokens.
        rows: usize,
        /// Channels per token.
        inputs: usize,
        /// Output channels per token.
        outputs: usize,
    },
    /// Of a picture.
    Picture {
        /// Rows and columns.
        side: usize,
        /// Input and output channels.
        channels: usize,
    },
    /// Of token-wise operations.
    Tokens {
        /// Tokens.
        rows: usize,
        /// Channels per token.
        channels: usize,
    },
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Attention {
                s,
                d,
                heads,
                kv_heads,
            } if heads == kv_heads => {
                write!(f, "S {s}, d {d}, {heads} heads")
            }
            Self::Attention {
                s,
                d,
                heads,
                kv_heads,
            } => {
                write!(f, "S {s}, d {d}, {heads}/{kv_heads} heads")
            }
            Self::Matrix {
                rows,
                inputs,
                outputs,
            } => write!(f, "{rows} x {inputs} -> {outputs}"),
            Self::Picture { side, channels } => write!(f, "{side} x {side} x {channels}"),
            Self::Tokens { rows, channels } => write!(f, "{rows} x {channels}"),
        }
    }
}

impl Case {
    /// Floating-point operations, two per multiply-add; causal attention counts visible pairs.
    pub fn flops(&self) -> Option<f64> {
        match (self.op, self.shape) {
            (Op::Attend, Shape::Attention { s, d, heads, .. }) => {
                Some(2.0 * product(&[s, s, d, heads]))
            }
            (Op::Decode, Shape::Attention { s, d, heads, .. }) => {
                Some(4.0 * product(&[s, d, heads]))
            }
            (
                Op::Linear | Op::LinearOne,
                Shape::Matrix {
                    rows,
                    inputs,
                    outputs,
                },
            ) => Some(2.0 * product(&[rows, inputs, outputs])),
            (Op::Conv, Shape::Picture { side, channels }) => {
                Some(2.0 * product(&[side, side, 9, channels, channels]))
            }
            _ => None,
        }
    }

    /// Approximate bytes of its inputs and results.
    pub fn bytes(&self) -> u64 {
        let numbers = match self.shape {
            Shape::Attention {
                s,
                d,
                heads,
                kv_heads,
            } => {
                let queries = if self.op == Op::Attend { 3 * s } else { 3 };
                product(&[2 * s, kv_heads, d]) + product(&[queries, heads, d])
            }
            Shape::Matrix {
                rows,
                inputs,
                outputs,
            } => product(&[inputs, outputs]) + product(&[rows, inputs + outputs]),
            Shape::Picture { side, channels } => product(&[2, side, side, channels]),
            Shape::Tokens { rows, channels } => product(&[3, rows, channels]),
        };
        (4.0 * numbers) as u64
    }

    /// The multiply-add instruction that it uses at `level`, whose peak is its ceiling.
    pub fn multiply(&self, level: Level) -> Option<Multiply> {
        self.flops()?;
        let is_attention = matches!(self.op, Op::Attend | Op::Decode);
        Some(match (self.dtype, level) {
            (KvDtype::Bf16 | KvDtype::Int4, Level::Avx512Bf16) if is_attention => Multiply::Bf16,
            (KvDtype::Int8, Level::Avx512Bf16) if is_attention => Multiply::Int8,
            _ => Multiply::F32,
        })
    }
}

/// The product of some extents.
pub fn product(extents: &[usize]) -> f64 {
    extents.iter().map(|&n| n as f64).product()
}

/// Selects the cases.
#[derive(Debug, Clone)]
pub struct CaseFilter {
    /// Operations.
    pub ops: Vec<Op>,
    /// Element types, for the operations that have them.
    pub dtypes: Vec<KvDtype>,
    /// Lengths of prompts.
    pub lengths: Vec<usize>,
    /// Tokens of the cache that one token attends to.
    pub cache: usize,
    /// Channels of a head.
    pub d: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Divides the extents of all other operations.
    pub smaller: usize,
}

impl CaseFilter {
    /// The cases: every selected operation with every element type and shape.
    pub fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for &op in &self.ops {
            let has = |dtype: &KvDtype| op.dtypes().contains(dtype);
            let asked: Vec<KvDtype> = self.dtypes.iter().copied().filter(has).collect();
            let is_f32_alone = op.dtypes().len() == 1;
            let dtypes = if is_f32_alone {
                vec![KvDtype::F32]
            } else {
                asked
            };
            for shape in self.shapes(op) {
                cases.extend(dtypes.iter().map(|&dtype| Case { op, dtype, shape }));
            }
        }
        cases
    }

    fn shapes(&self, op: Op) -> Vec<Shape> {
        let attention = |s: usize| Shape::Attention {
            s,
            d: self.d,
            heads: self.heads,
            kv_heads: self.kv_heads,
        };
        let n = |full: usize| full / self.smaller;
        let one = match op {
            Op::Attend => return self.lengths.iter().map(|&s| attention(s)).collect(),
            Op::Decode => attention(self.cache),
            Op::Linear | Op::LinearOne => Shape::Matrix {
                rows: if op == Op::Linear { n(512) } else { 1 },
                inputs: n(4096),
                outputs: n(11008),
            },
            Op::Conv | Op::GroupNorm => Shape::Picture {
                side: n(256),
                channels: 128,
            },
            Op::RmsNorm | Op::Rope => Shape::Tokens {
                rows: n(4096),
                channels: 4096,
            },
            Op::Swiglu => Shape::Tokens {
                rows: n(2048),
                channels: 11008,
            },
        };
        vec![one]
    }
}

#[cfg(test)]
mod tests {
    use longreel_kernels::attend::KvDtype;

    use super::{CaseFilter, Op};

    fn all() -> CaseFilter {
        CaseFilter {
            ops: Op::ALL.to_vec(),
            dtypes: KvDtype::ALL.to_vec(),
            lengths: vec![8192, 32768],
            cache: 1024,
            d: 128,
            heads: 8,
            kv_heads: 2,
            smaller: 8,
        }
    }

    #[test]
    fn the_table_has_every_element_type_that_an_operation_has() {
        let count = |op| all().cases().iter().filter(|c| c.op == op).count();
        assert_eq!((count(Op::Attend), count(Op::Decode)), (8, 4));
        assert_eq!((count(Op::Linear), count(Op::Conv)), (2, 1));
    }

    #[test]
    fn causal_attention_counts_half_of_the_square() {
        let cases = all().cases();
        let of = |op| cases.iter().find(|c| c.op == op).and_then(|c| c.flops());
        assert_eq!(of(Op::Attend), Some(2.0 * 8192.0 * 8192.0 * 128.0 * 8.0));
        assert_eq!(of(Op::Decode), Some(4.0 * 1024.0 * 128.0 * 8.0));
        assert_eq!(of(Op::Rope), None);
    }
}
