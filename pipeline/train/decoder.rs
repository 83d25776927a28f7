//! A stage of decoder training, from its configuration to a model directory.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use candle_core::{Device, Tensor};
use longreel_models::{
    checkpoint::{
        layout::{OF_CODES, decoder_tensors},
        weights::Weights,
    },
    context::{prompt::FrameTerminators, tokenizer::Tokenizer, vocab::Token},
    file_name::FileName,
    spec::{DecoderSpec, FrameEnd, ModelSpec},
    systems,
    training::{
        data::{
            batch::{Batch, BatchRules, TokenStream},
            example::{Example, ExampleRules, OpenCodes, VisionRules},
        },
        network::Network,
        parameters::{ByName, Parameters},
        trainer::Trainer,
    },
};
use rayon::ThreadPool;
use serde::{Deserialize, Serialize};

use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    train::{
        config::TrainConfig,
        dataset::{Dataset, codes_of_reel},
        feed::{Feed, one_pass},
        metrics::{Figures, MetricsFile},
        plot::{Curve, Plot, write_plot},
        run_directory::RunDirectory,
    },
};

/// Files of a checkpoint: parameters, the optimizer's state, and the buffered tokens of the stream with
/// their loss weights (`ids`, `vision`, `loss`).
const FILES: [&str; 3] = [
    "parameters.safetensors",
    "moments.safetensors",
    "stream.safetensors",
];

/// The curves of the plot.
const CURVES: [Curve<Figures>; 3] = [
    ("text, trained on", |f| (!f.held_out).then_some(f.text_loss)),
    ("text, held out", |f| f.held_out.then_some(f.text_loss)),
    ("codes, trained on", |f| {
        (!f.held_out && f.vision_loss > 0.0).then_some(f.vision_loss)
    }),
];

/// The progress of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// Steps done.
    pub step: u64,
    /// Index of the next example in the endless sequence of lines.
    pub next_example: u64,
    /// Tokens read.
    pub tokens: u64,
}

/// The inputs of a run.
pub struct Job {
    /// Its configuration.
    pub config: TrainConfig,
    /// The specification of the network; weights come from `config.model`.
    pub spec: ModelSpec,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The threads of each rank.
    pub pools: Vec<ThreadPool>,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its progress.
    pub standing: Standing,
    /// Figures of the last step.
    pub last: Option<Figures>,
    /// Invalid lines, of training or held-out files.
    pub skipped_lines: usize,
    /// The first few of them, with the reason.
    pub skipped: Vec<String>,
}

/// What the model in `dir` is made of.
fn answering(dir: &Path) -> Result<ModelSpec> {
    systems::open(dir)?.answering().cloned()
}

/// The tensors of the model in `dir`.
fn weights_of(dir: &Path) -> Result<Weights> {
    systems::open(dir)?.weights()
}

/// The specification of the network that `config` trains.
///
/// # Errors
/// `BadInput` for a specification or a directory that cannot be read, for two that do not match, and for rows
/// longer than the context.
pub fn spec_of(config: &TrainConfig) -> Result<ModelSpec> {
    let of_init = config.model.init.as_ref();
    let of_init = of_init.map(|dir| answering(dir)).transpose()?;
    let mut spec = match (&config.model.spec, &of_init) {
        (Some(path), _) => {
            let doing = || format!("read {}", path.shown());
            let text = std::fs::read_to_string(path).doing(doing)?;
            ModelSpec::from_toml(&text).doing(doing)?
        }
        (None, Some(of_init)) => of_init.clone(),
        (None, None) => {
            let message = "model.spec and model.init are missing, expected one of them";
            return Err(Error::new(Kind::BadInput, message));
        }
    };
    if let Some(theta) = config.model.rope_theta {
        spec.decoder.rope_theta = theta;
    }
    if let Some(longest) = config.model.max_position_embeddings {
        spec.decoder.max_position_embeddings = longest;
    }
    spec.validate()?;
    if let Some(of_init) = &of_init {
        check_alike(&spec, of_init)?;
    }
    let (row, longest) = (config.data.seq_length, spec.decoder.max_position_embeddings);
    if row > longest {
        let message = format!(
            "data.seq_length is {row}, the model's context {longest}: expected no longer rows, \
             or a larger model.max_position_embeddings"
        );
        return Err(Error::new(Kind::BadInput, message));
    }
    Ok(spec)
}

/// Checks that the weights of `of_init` fit `spec`, which may additionally read codes and have a longer context.
fn check_alike(spec: &ModelSpec, of_init: &ModelSpec) -> Result<()> {
    let decoder = DecoderSpec {
        vision_vocab_size: of_init
            .decoder
            .vision_vocab_size
            .or(spec.decoder.vision_vocab_size),
        rope_theta: spec.decoder.rope_theta,
        max_position_embeddings: spec.decoder.max_position_embeddings,
        ..of_init.decoder.clone()
    };
    let json = |decoder: &DecoderSpec| {
        serde_json::to_value(decoder)
            .map_err(|e| Error::with_source(Kind::Internal, "compare two decoders", e))
    };
    let (wanted, found) = (json(&spec.decoder)?, json(&decoder)?);
    let keys = wanted.as_object().into_iter().chain(found.as_object());
    let mut keys = keys.flat_map(serde_json::Map::keys);
    keys.find(|key| wanted.get(key) != found.get(key))
        .map_or(Ok(()), |key| {
            let said =
                |of: &serde_json::Value| of.get(key).map_or("absent".into(), ToString::to_string);
            let message = format!(
                "{key} is {} in model.spec and {} in model.init, expected the same",
                said(&wanted),
                said(&found)
            );
            Err(Error::new(Kind::BadInput, message))
        })
}

/// The directory of the tokenizer.
pub fn tokenizer_of(config: &TrainConfig) -> Option<&PathBuf> {
    config
        .model
        .tokenizer
        .as_ref()
        .or(config.model.init.as_ref())
}

/// Trains, or resumes an earlier run; `tell` receives the figures of every step.
///
/// On Ctrl-C a checkpoint is written first.
///
/// # Errors
/// `Compute` for a loss that is NaN or infinite, `Interrupted` on request; the last checkpoint stays.
pub fn train(
    job: Job,
    run: &RunDirectory,
    tell: &mut dyn FnMut(&Figures),
    cancel: &Cancel,
) -> Result<(Outcome, Trainer)> {
    let mut training = Training::begin(job, run)?;
    training.go_on(run, tell, cancel)?;
    let lines = [Some(&training.lines), training.held_out.as_ref()].into_iter();
    let skipped = lines.flatten().map(Dataset::skipped);
    let (numbers, named): (Vec<usize>, Vec<&[String]>) = skipped.unzip();
    let mut figures = training.metrics.read()?.into_iter();
    let outcome = Outcome {
        standing: training.standing,
        last: figures.rfind(|figures| !figures.held_out),
        skipped_lines: numbers.iter().sum(),
        skipped: named.concat(),
    };
    Ok((outcome, training.trainer))
}

struct Training {
    config: TrainConfig,
    spec: ModelSpec,
    tokenizer: Tokenizer,
    trainer: Trainer,
    lines: Dataset,
    held_out: Option<Dataset>,
    stream: TokenStream,
    standing: Standing,
    metrics: MetricsFile<Figures>,
}

impl Training {
    fn begin(job: Job, run: &RunDirectory) -> Result<Self> {
        let Job {
            config,
            spec,
            tokenizer,
            pools,
        } = job;
        let checkpoint = run.checkpoint::<Standing, _>(FILES)?;
        let parameters = match &checkpoint {
            Some((_, [parameters, ..])) => Parameters::of(parameters.clone())?,
            None => first_parameters(&config, &spec)?,
        };
        let network = Network::new(spec.decoder.clone(), parameters)?;
        let mut trainer = Trainer::new(network, config.recipe, pools);
        let (mut standing, mut stream) = (Standing::default(), TokenStream::default());
        if let Some((stood, [_, moments, of_stream])) = &checkpoint {
            standing = *stood;
            trainer.resume(standing.step, moments)?;
            stream = waiting(of_stream)?;
        }
        let data = &config.data;
        let held_out = match data.held_out.as_slice() {
            [] => None,
            paths => Some(Dataset::open(paths, None).doing(|| "data.held_out")?),
        };
        let mut training = Self {
            lines: Dataset::open(&data.train, data.shuffle.then_some(config.seed))?,
            held_out,
            metrics: MetricsFile::open(run.file("metrics.jsonl"), standing.step)?,
            config,
            spec,
            tokenizer,
            trainer,
            stream,
            standing,
        };
        // Checked before the first step, so that bad held-out files do not end a run later.
        training.held_out_batches()?;
        Ok(training)
    }

    fn go_on(
        &mut self,
        run: &RunDirectory,
        tell: &mut dyn FnMut(&Figures),
        cancel: &Cancel,
    ) -> Result<()> {
        let mut is_saved = true;
        while self.standing.step < self.config.steps {
            if let Err(stopped) = cancel.check() {
                if !is_saved {
                    self.save(run)?;
                }
                return Err(stopped);
            }
            self.step(tell)?;
            let step = self.standing.step;
            let is_last = step == self.config.steps;
            if step.is_multiple_of(self.config.evaluate_every) || is_last {
                self.look_at_held_out(tell)?;
            }
            is_saved = step.is_multiple_of(self.config.checkpoint_every) || is_last;
            if is_saved {
                self.save(run)?;
            }
        }
        Ok(())
    }

    fn step(&mut self, tell: &mut dyn FnMut(&Figures)) -> Result<()> {
        let start = Instant::now();
        let doing = |step: u64| move || format!("step {}", step + 1);
        let batches = self.batches()?;
        let report = self
            .trainer
            .step(&batches)
            .doing(doing(self.standing.step))?;
        self.standing.step = report.step;
        self.standing.tokens += report.tokens;
        let figures =
            Figures::of_step(&report, self.standing.tokens, start.elapsed().as_secs_f64());
        self.metrics.append(&figures)?;
        tell(&figures);
        Ok(())
    }

    fn look_at_held_out(&mut self, tell: &mut dyn FnMut(&Figures)) -> Result<()> {
        let batches = self.held_out_batches()?;
        if batches.is_empty() {
            return Ok(());
        }
        let report = self.trainer.evaluate(&batches).doing(|| "held-out lines")?;
        let figures = Figures::held_out(&report, self.standing.step, self.standing.tokens);
        self.metrics.append(&figures)?;
        tell(&figures);
        Ok(())
    }

    /// All held-out lines; empty where there are none.
    fn held_out_batches(&mut self) -> Result<Vec<Batch>> {
        let Some(lines) = &mut self.held_out else {
            return Ok(Vec::new());
        };
        let rules = batch_rules(&self.config, &self.tokenizer)?;
        let open_codes = open_codes(&self.spec);
        let examples = example_rules(&self.config, &self.spec, &self.tokenizer, &open_codes);
        one_pass(lines, &examples, &rules).doing(|| "data.held_out")
    }

    fn save(&self, run: &RunDirectory) -> Result<()> {
        let parameters = self.trainer.network().parameters().iter();
        let parameters = parameters.map(|(name, var)| (name.clone(), var.as_tensor().clone()));
        let tensors = [
            parameters.collect(),
            self.trainer.moments()?,
            kept(&self.stream)?,
        ];
        let files: Vec<(&str, &ByName)> = FILES.into_iter().zip(&tensors).collect();
        run.write_checkpoint(self.standing.step, &self.standing, &files)?;
        let plot = Plot {
            title: self.config.description.as_deref().unwrap_or("training"),
            unit: "loss, nats a token",
            curves: &CURVES,
        };
        write_plot(&run.file("loss.svg"), &plot, &self.metrics.read()?)
    }

    /// The batches of the next step.
    fn batches(&mut self) -> Result<Vec<Batch>> {
        let rules = batch_rules(&self.config, &self.tokenizer)?;
        let dealing = self.config.data.dealing;
        let open_codes = open_codes(&self.spec);
        let examples = example_rules(&self.config, &self.spec, &self.tokenizer, &open_codes);
        let mut feed = Feed {
            lines: &mut self.lines,
            examples: &examples,
            next: &mut self.standing.next_example,
            stream: &mut self.stream,
        };
        let n = self.config.data.batches_per_step;
        (0..n).map(|_| feed.batch(dealing, &rules)).collect()
    }
}

/// The initial weights: those of `init`, and random ones for what it lacks.
fn first_parameters(config: &TrainConfig, spec: &ModelSpec) -> Result<Parameters> {
    let model = &config.model;
    let mut shapes = decoder_tensors(&spec.decoder);
    let mut taken = ByName::new();
    if let Some(dir) = &model.init {
        let doing = || format!("take the weights of {}", dir.shown());
        let mut weights = weights_of(dir).doing(doing)?;
        let is_new = |name: &str| OF_CODES.contains(&name) && !weights.contains(name);
        let (new, there): (Vec<_>, Vec<_>) = shapes.into_iter().partition(|(n, _)| is_new(n));
        for (name, shape) in &there {
            taken.insert(name.clone(), weights.tensor(name, shape).doing(doing)?);
        }
        shapes = new;
    }
    let random = Parameters::random(&shapes, model.initializer_range, config.seed)?;
    if let (true, Some(vqgan), Some(dir)) = (model.codes_from_codebook, &spec.vqgan, &model.vqgan) {
        let doing = || format!("take the codebook of {}", dir.shown());
        let shape = [vqgan.num_embeddings, vqgan.quantized_embed_dim];
        let mut weights = weights_of(dir).doing(doing)?;
        let codebook = weights.tensor("vqgan.quantize.embeddings", &shape);
        embed_codes(&random, &codebook.doing(doing)?).doing(doing)?;
    }
    let random = random.iter();
    taken.extend(random.map(|(name, var)| (name.clone(), var.as_tensor().clone())));
    Parameters::of(taken)
}

/// Replaces the first rows of the vision embedding by projections of `codebook` `[rows, width]`, whose columns are first
/// normalized to mean 0 and deviation 1; the projection matrix is the table's own random first rows.
fn embed_codes(parameters: &Parameters, codebook: &Tensor) -> Result<()> {
    let (rows, width) = codebook.dims2()?;
    let table = parameters.get("model.vision_embed_tokens.weight")?;
    let all = table.dim(0)?;
    if width > all {
        let message = format!("the codebook has {width} columns, expected at most {all}");
        return Err(Error::new(Kind::BadInput, message));
    }
    let centred = codebook.broadcast_sub(&codebook.mean_keepdim(0)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(0)? + f64::EPSILON)?.sqrt()?;
    let projection = (table.narrow(0, 0, width)? / (width as f64).sqrt())?;
    let of_codes = centred.broadcast_div(&deviation)?.matmul(&projection)?;
    let rest = table.narrow(0, rows, all - rows)?;
    Ok(table.set(&Tensor::cat(&[&of_codes, &rest], 0)?)?)
}

/// Shape and padding of batches.
fn batch_rules(config: &TrainConfig, tokenizer: &Tokenizer) -> Result<BatchRules> {
    let fill = tokenizer.bos_id().ok_or_else(|| {
        let message = "the tokenizer has no token that begins a text";
        Error::new(Kind::BadInput, message)
    })?;
    Ok(BatchRules {
        rows: config.data.rows,
        seq_length: config.data.seq_length,
        fill: Token::Text(fill),
        pad_rule: config.data.pad_rule,
    })
}

/// A reader of the codes of reels.
fn open_codes(spec: &ModelSpec) -> impl Fn(&Path) -> Result<Vec<u32>> + Sync + use<> {
    let shape = spec
        .vqgan
        .as_ref()
        .map(|vqgan| (vqgan.grid(), vqgan.num_embeddings));
    move |path| match shape {
        Some((grid, codebook)) => codes_of_reel(path, grid, codebook),
        None => {
            let path = path.shown();
            let message =
                format!("the model has no VQGAN, expected one that reads the reel {path}");
            Err(Error::new(Kind::BadInput, message))
        }
    }
}

fn example_rules<'a>(
    config: &TrainConfig,
    spec: &ModelSpec,
    tokenizer: &'a Tokenizer,
    open_codes: &'a OpenCodes<'a>,
) -> ExampleRules<'a> {
    let vision = spec.vqgan.as_ref().map(|vqgan| VisionRules {
        codes_per_frame: vqgan.codes_per_frame(),
        terminators: FrameTerminators {
            end: FrameEnd::Training,
            ..FrameTerminators::from(spec)
        },
        codebook: vqgan.num_embeddings,
        n_frames_max: config.data.n_frames_max,
    });
    ExampleRules {
        tokenizer,
        fields: config.fields(),
        vision,
        open_codes,
    }
}

/// The buffered tokens of a stream as tensors: `ids`, `vision` (1 for codes and terminators), `loss`.
fn kept(stream: &TokenStream) -> Result<ByName> {
    let (tokens, loss) = stream.waiting();
    let n = tokens.len();
    let ids: Vec<u32> = tokens.iter().map(|token| token.id()).collect();
    let vision: Vec<u8> = tokens
        .iter()
        .map(|token| u8::from(token.is_vision()))
        .collect();
    let tensors = [
        ("ids", Tensor::from_vec(ids, n, &Device::Cpu)?),
        ("vision", Tensor::from_vec(vision, n, &Device::Cpu)?),
        ("loss", Tensor::from_slice(loss, n, &Device::Cpu)?),
    ];
    Ok(tensors
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into())
}

/// The inverse of [`kept`].
fn waiting(tensors: &ByName) -> Result<TokenStream> {
    let of = |name: &str| {
        let missing = || Error::new(Kind::BadInput, format!("the stream has no {name}"));
        tensors.get(name).ok_or_else(missing)
    };
    let ids: Vec<u32> = of("ids")?.to_vec1()?;
    let vision: Vec<u8> = of("vision")?.to_vec1()?;
    let tokens = ids
        .into_iter()
        .zip(vision)
        .map(|(id, vision)| match vision {
            0 => Token::Text(id),
            _ => Token::Vision(id),
        });
    let mut stream = TokenStream::default();
    stream.push(&Example {
        tokens: tokens.collect(),
        loss: of("loss")?.to_vec1()?,
    });
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use longreel_models::training::parameters::Parameters;

    use super::embed_codes;

    #[test]
    fn codes_with_one_row_of_the_codebook_begin_as_one_embedding() {
        let name = "model.vision_embed_tokens.weight";
        let shapes = [(name.to_owned(), vec![6, 64])];
        let parameters = Parameters::random(&shapes, 0.02, 1).unwrap();
        let rows = || -> Vec<Vec<f32>> { parameters.get(name).unwrap().to_vec2().unwrap() };
        let before = rows();
        let codebook = Tensor::new(
            &[[1f32, 5.0], [-3.0, 2.0], [1.0, 5.0], [0.0, -9.0]],
            &Device::Cpu,
        );
        embed_codes(&parameters, &codebook.unwrap()).unwrap();
        let after = rows();
        assert_eq!(after[0], after[2]);
        assert_ne!(after[0], after[1]);
        // Terminators are not codes.
        assert_eq!(after[4..], before[4..]);
        let squares = |rows: &[Vec<f32>]| rows.iter().flatten().map(|x| x * x).sum::<f32>();
        let ratio = squares(&after[..4]) / squares(&before[..4]);
        assert!((0.5..2.0).contains(&ratio), "{ratio}");
        let wide = Tensor::zeros((4, 7), candle_core::DType::F32, &Device::Cpu).unwrap();
        let error = embed_codes(&parameters, &wide).unwrap_err().to_string();
        assert!(error.contains("expected at most 6"), "{error}");
    }
}
