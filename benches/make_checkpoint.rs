//! Writes a random checkpoint of LWM's sizes in LWM's own form, for measuring
//! import, loading and decoding where the real weights are not at hand:
//!
//! `cargo bench --bench make_checkpoint -- --spec configs/models/lwm-chat-1m.toml --out DIR`
//!
//! `DIR/params` is a bf16 stream with stacked layers, `DIR/vqgan.safetensors` the
//! VQGAN in f32. Kernels are uniform with standard deviation 0.02 (VQGAN: scaled
//! by fan-in), norms are ones. Without `--out` nothing is written.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use half::bf16;
use longreel_models::{
    checkpoint::layout,
    spec::{ModelSpec, VqganSpec},
};
use rand_words::Words;

#[path = "../tests/support/tux.rs"]
#[allow(dead_code)]
mod tux;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let at = args.iter().position(|a| a == name)?;
        args.get(at + 1).map(PathBuf::from)
    };
    let (Some(spec), Some(out)) = (option("--spec"), option("--out")) else {
        println!("make_checkpoint: nothing to do without --spec and --out");
        return;
    };
    let spec = ModelSpec::from_toml(&fs::read_to_string(spec).unwrap()).unwrap();
    fs::create_dir_all(&out).unwrap();
    write_params(&out.join("params"), &spec).unwrap();
    if let Some(vqgan) = &spec.vqgan {
        write_vqgan(&out.join("vqgan.safetensors"), vqgan).unwrap();
    }
}

fn write_params(path: &Path, spec: &ModelSpec) -> io::Result<()> {
    let d = &spec.decoder;
    let (hidden, inner, layers) = (d.hidden_size, d.intermediate_size, d.num_hidden_layers);
    let queries = d.num_attention_heads * d.head_dim();
    let keys = d.n_kv_heads() * d.head_dim();
    let block = "transformer/h/scan_decoder/";
    let mut tensors = vec![
        (
            "transformer/wte/embedding".to_owned(),
            vec![d.vocab_size, hidden],
        ),
        (
            format!("{block}attention/wq/kernel"),
            vec![layers, hidden, queries],
        ),
        (
            format!("{block}attention/wk/kernel"),
            vec![layers, hidden, keys],
        ),
        (
            format!("{block}attention/wv/kernel"),
            vec![layers, hidden, keys],
        ),
        (
            format!("{block}attention/wo/kernel"),
            vec![layers, queries, hidden],
        ),
        (
            format!("{block}feed_forward/w1/kernel"),
            vec![layers, hidden, inner],
        ),
        (
            format!("{block}feed_forward/w2/kernel"),
            vec![layers, inner, hidden],
        ),
        (
            format!("{block}feed_forward/w3/kernel"),
            vec![layers, hidden, inner],
        ),
        (
            format!("{block}attention_norm/kernel"),
            vec![layers, hidden],
        ),
        (format!("{block}ffn_norm/kernel"), vec![layers, hidden]),
        ("transformer/ln_f/kernel".to_owned(), vec![hidden]),
        ("lm_head/kernel".to_owned(), vec![hidden, d.vocab_size]),
    ];
    if let Some(vision) = d.vision_vocab_size {
        tensors.push(("transformer/vte/embedding".to_owned(), vec![vision, hidden]));
        tensors.push(("vision_head/kernel".to_owned(), vec![hidden, vision]));
    }
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut words = Words::new(1);
    for (name, shape) in tensors {
        let path: Vec<&str> = name.split('/').collect();
        let norm = name.contains("norm") || name.contains("ln_f");
        tux::write_array(
            &mut out,
            &path,
            ("bfloat16", 2),
            &shape,
            tux::CHUNK_BYTES,
            |out, n| write_bf16(out, n / 2, norm, &mut words),
        )?;
    }
    out.flush()
}

fn write_bf16(out: &mut impl Write, n: usize, ones: bool, words: &mut Words) -> io::Result<()> {
    let table: Vec<[u8; 2]> = (0..=u16::MAX)
        .map(|i| bf16::from_f32(if ones { 1.0 } else { uniform(i, 0.02) }).to_le_bytes())
        .collect();
    let mut buffer = Vec::with_capacity(1 << 16);
    for start in (0..n).step_by(1 << 15) {
        buffer.clear();
        for _ in start..n.min(start + (1 << 15)) {
            buffer.extend_from_slice(&table[usize::from(words.next())]);
        }
        out.write_all(&buffer)?;
    }
    Ok(())
}

/// Uniform around zero with this standard deviation.
fn uniform(word: u16, deviation: f32) -> f32 {
    (f32::from(word) / 65535.0 * 2.0 - 1.0) * deviation * 3f32.sqrt()
}

fn write_vqgan(path: &Path, spec: &VqganSpec) -> io::Result<()> {
    let mut words = Words::new(2);
    let mut data = Vec::new();
    for (name, shape) in layout::vqgan_tensors(spec) {
        let n: usize = shape.iter().product();
        let fan_in: usize = shape.iter().rev().skip(1).product();
        let values: Vec<u8> = (0..n)
            .flat_map(|_| {
                let value = match name.rsplit('.').next() {
                    Some("scale") => 1.0,
                    Some("bias") => 0.0,
                    Some("embeddings") => uniform(words.next(), 0.5),
                    _ => uniform(words.next(), (fan_in as f32).sqrt().recip()),
                };
                value.to_le_bytes()
            })
            .collect();
        let name = name.trim_start_matches("vqgan.").replace('.', "/");
        data.push((name, shape, values));
    }
    let views = data.iter().map(|(name, shape, values)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), values);
        (name.clone(), view.unwrap())
    });
    safetensors::serialize_to_file(views, None, path).map_err(io::Error::other)
}

/// Random 16-bit words.
mod rand_words {
    /// Vigna's xorshift64*, four words a step.
    pub struct Words {
        state: u64,
        left: u64,
        count: u32,
    }

    impl Words {
        pub fn new(seed: u64) -> Self {
            Self {
                state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
                left: 0,
                count: 0,
            }
        }

        pub fn next(&mut self) -> u16 {
            if self.count == 0 {
                self.state ^= self.state >> 12;
                self.state ^= self.state << 25;
                self.state ^= self.state >> 27;
                self.left = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d);
                self.count = 4;
            }
            self.count -= 1;
            let word = self.left as u16;
            self.left >>= 16;
            word
        }
    }
}
