//! The command line as written: filled without any I/O, resolved by each verb.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::plan::SHORT_QUESTION;

/// Ask questions of hours of video.
#[derive(Debug, Parser)]
#[command(
    name = "longreel",
    version,
    max_term_width = 100,
    propagate_version = true
)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 bad usage or bad input, 75 stopped and resumable, \
                        130 interrupted.\n\nStart with:\n  longreel ask holiday.mp4 \"What happens at the lake?\" --model org/name"
)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,

    /// Print one JSON object on stdout and nothing else there.
    #[arg(long, global = true)]
    pub json: bool,

    /// No progress on stderr.
    #[arg(long, short, global = true)]
    pub quiet: bool,

    /// Threads for encoding and answering; all cores when absent.
    #[arg(long, global = true, value_name = "N", value_delimiter = ',')]
    pub threads: Vec<usize>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Ask a question of one or more videos.
    Ask(AskArgs),
    /// Write the frames that would be seen, with their exact times.
    Frames(FramesArgs),
    /// Turn videos or images into a reel: frame tokens, features or vectors, with times.
    Encode(EncodeArgs),
    /// Find the moments that a text or a picture describes.
    Search(SearchArgs),
    /// Decode a reel back to a video: see what the model sees.
    Reconstruct(ReconstructArgs),
    /// Make an image or a video from a description.
    Generate(GenerateArgs),
    /// Render clips of a synthetic world, with questions and exact answers.
    Synth(SynthArgs),
    /// Render a clip held out from training and compare a model's answers.
    Demo(DemoArgs),
    /// Turn a foreign checkpoint into a model directory.
    Import(ImportArgs),
    /// List, show, verify and fetch models.
    #[command(
        subcommand,
        after_help = "Examples:\n  longreel models pull org/name\n  longreel models verify lwm/"
    )]
    Models(ModelsVerb),
    /// Count frames, tokens, bytes and operations before anything runs.
    Plan(PlanArgs),
    /// Train a model with LWM's recipe.
    #[command(
        subcommand,
        after_help = "Examples:\n  longreel train decoder configs/train/text.toml --out runs/text/\n  \
                        longreel train decoder configs/train/text.toml --out runs/text/ --ring 2\n  \
                        longreel train vqgan vqgan.toml --out runs/vqgan/"
    )]
    Train(TrainVerb),
    /// Measure this machine, and the program's speed on it.
    #[command(
        subcommand,
        after_help = "Examples:\n  longreel bench kernels\n  longreel bench kernels --op attend --s 8192 --threads 1,2 --json"
    )]
    Bench(BenchVerb),
}

/// Which frames of a video are taken.
#[derive(Debug, Clone, Args, Default)]
pub struct SamplingArgs {
    /// Frames per second, e.g. 1, 0.5 or 30000/1001: the first frame at or after each tick.
    #[arg(long, value_name = "F", conflicts_with = "all_frames")]
    pub fps: Option<String>,

    /// This many frames, spread evenly over the decoded frame numbers; with --sampler, how many are kept.
    #[arg(long, value_name = "N")]
    pub frames: Option<usize>,

    /// Every frame.
    #[arg(long)]
    pub all_frames: bool,

    /// Start of the range, in seconds or [HH:]MM:SS[.mmm].
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,

    /// End of the range (not included), in seconds or [HH:]MM:SS[.mmm].
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,

    #[command(flatten)]
    pub choosing: ChoosingArgs,
}

/// Frames chosen by content.
#[derive(Debug, Clone, Args, Default)]
pub struct ChoosingArgs {
    /// Choose by content, in a first pass over the video: among one frame per second, whatever the model's own
    /// rule, or among those of --fps or --all-frames.
    #[arg(long, value_enum)]
    pub sampler: Option<SamplerArg>,

    /// Keep a frame that differs from the last one kept by more than this share of the difference of black and white
    /// [default: 0.01].
    #[arg(long, value_name = "X", requires = "sampler")]
    pub change_threshold: Option<f64>,

    /// Longest time without a kept frame; frames are added to fill longer gaps.
    #[arg(long, value_name = "TIME", requires = "sampler")]
    pub max_gap: Option<String>,

    /// CLIP or SigLIP, for --sampler query: a directory, or org/name on the hub.
    #[arg(long, value_name = "MODEL", requires = "sampler")]
    pub query_model: Option<PathBuf>,

    /// Description of the frames wanted, for --sampler query; the question of `ask` when absent.
    #[arg(long, value_name = "TEXT", requires = "sampler")]
    pub query: Option<String>,

    /// A reel of vectors of the videos: its frames are the candidates, so that nothing is encoded again.
    #[arg(long, value_name = "FILE", requires = "sampler", conflicts_with_all = ["fps", "all_frames"])]
    pub query_reel: Option<PathBuf>,

    /// Least time between two frames chosen by a query.
    #[arg(long, value_name = "TIME", requires = "sampler")]
    pub min_gap: Option<String>,
}

/// How frames are chosen by content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SamplerArg {
    /// Frames that differ from the last one kept; with --frames, the first and those that differ most.
    Change,
    /// The --frames frames whose CLIP or SigLIP vectors are most similar to a text's.
    Query,
}

/// Pixel budget of models that take frames of any size (Qwen2.5-VL, Qwen3-VL).
#[derive(Debug, Clone, Args, Default)]
pub struct PixelArgs {
    /// Least number of pixels of a frame (Qwen3-VL: of all frames together); that of the model's processor when absent.
    #[arg(long, value_name = "N")]
    pub min_pixels: Option<usize>,

    /// Largest number of pixels, likewise.
    #[arg(long, value_name = "N")]
    pub max_pixels: Option<usize>,
}

/// How tokens are sampled.
#[derive(Debug, Clone, Args)]
pub struct DrawArgs {
    /// 0 takes the most likely token; above 0 samples at that temperature.
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    pub temperature: f64,

    /// Sample among the K most likely tokens only.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,

    /// Sample among the most likely tokens whose probabilities add up to P.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,

    /// The same seed gives the same answer.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
}

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvDtypeArg {
    /// 4 bytes per element, exact.
    F32,
    /// 2 bytes per element.
    Bf16,
    /// 1 byte per element and a scale per token and head.
    Int8,
    /// Half a byte per element and a scale per 32 channels.
    Int4,
}

/// How quantized matrices of GGUF files are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GgufProductsArg {
    /// From copies, with activations rounded to 8 bits as in llama.cpp: several times as fast, in two to three times the
    /// memory of the file.
    Rounded,
    /// From the file itself, without rounding.
    Exact,
}

/// A chat template in the place of the model's own.
#[derive(Debug, Args)]
pub struct TemplateArgs {
    /// A chat template that replaces the model's own: Jinja, or JSON with a `chat_template`.
    #[arg(long, value_name = "FILE")]
    pub template: Option<PathBuf>,
}

/// How a GGUF file is run.
#[derive(Debug, Args)]
pub struct GgufArgs {
    /// How the quantized matrices of a GGUF file are multiplied; answers depend on it.
    #[arg(long, value_enum, default_value_t = GgufProductsArg::Rounded)]
    pub gguf_products: GgufProductsArg,
}

/// Element type of a reel's features or vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReelDtypeArg {
    /// 4 bytes per element, exact.
    F32,
    /// 2 bytes, 8 bits of precision.
    Bf16,
    /// 2 bytes, 11 bits of precision, values up to 65504.
    F16,
}

/// What follows a frame's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FrameEndArg {
    /// As LWM's released inference does: every frame ends in 8193.
    Upstream,
    /// As LWM was trained: 8192 between frames, 8193 after the last.
    Training,
}

/// Position of the text that follows a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AfterVideoArg {
    /// After the video's highest position, as when these models were released.
    Highest,
    /// After the length of its longest axis, as in transformers 5: text may then get a time position inside a long video.
    Side,
}

/// A switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SwitchArg {
    /// Switched on.
    On,
    /// Switched off.
    Off,
}

/// `longreel ask`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  longreel ask a.mp4 \"What is on the table?\" --model lwm/ --fps 1\n  \
                        longreel ask a.mp4 b.mkv \"Which of the two is outdoors?\" --model org/name --frames 16\n  \
                        longreel ask a.mp4 \"Who comes in?\" --model lwm/ --sampler change --max-gap 60\n  \
                        longreel ask a.mp4 \"Where is the boat?\" --model lwm/ --sampler query --query-model clip/ --frames 32\n  \
                        longreel ask archive.reel \"When does the door open?\" --model lwm/ --json"
)]
pub struct AskArgs {
    /// Videos, images or reels, then the question.
    #[arg(required = true, num_args = 1.., value_name = "VIDEO... QUESTION")]
    pub inputs: Vec<OsString>,

    /// A model directory, org/name on the hub, or a GGUF file [default: the small demo model built into the
    /// program, which only understands clips like those of `longreel synth --plain --length 4`; it is written to
    /// ~/.cache/longreel].
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<PathBuf>,

    /// A GGUF file whose decoder replaces the model's own.
    #[arg(long, requires = "model", value_name = "FILE.gguf")]
    pub decoder: Option<PathBuf>,

    #[command(flatten)]
    pub gguf: GgufArgs,

    #[command(flatten)]
    pub template: TemplateArgs,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub pixels: PixelArgs,

    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub max_new_tokens: usize,

    #[command(flatten)]
    pub draw: DrawArgs,

    /// End the answer before this text; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// How keys and values are stored.
    #[arg(long, value_enum, default_value_t = KvDtypeArg::F32)]
    pub kv_dtype: KvDtypeArg,

    /// Tokens per prefill step and rank: more is faster, fewer take less memory.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub prefill_chunk: usize,

    /// Number of ranks that share the context, each with its part of the threads; under `mpirun` a
    /// rank is a process.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub ring: Option<u16>,

    /// Seconds without a message after which another process counts as lost.
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    pub ring_timeout: f64,

    /// What follows a frame's codes; the model's configuration decides when absent.
    #[arg(long, value_enum)]
    pub frame_end: Option<FrameEndArg>,

    /// Position of the text that follows a video (Qwen2-VL, Qwen2.5-VL).
    #[arg(long, value_enum)]
    pub after_video: Option<AfterVideoArg>,

    /// Tell the model the times of the frames before the question (LLaVA-Video, LLaVA-OneVision); as in its training
    /// when absent.
    #[arg(long, value_enum)]
    pub time_instruction: Option<SwitchArg>,

    /// Print the answer while it is decoded.
    #[arg(long)]
    pub stream: bool,

    /// Read follow-up questions from stdin, one per line; the context is kept.
    #[arg(long)]
    pub interactive: bool,

    /// Add prompt and answer ids to the JSON.
    #[arg(long)]
    pub debug_ids: bool,
}

/// `longreel frames`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  longreel frames a.mp4 --out seen/ --fps 1\n  \
                        longreel frames a.mp4 --out one/ --at 1:02.5\n  longreel frames a.mp4 --out seen/ --frames 8 --size model --model lwm/"
)]
pub struct FramesArgs {
    /// The video or image.
    pub video: PathBuf,

    /// Directory for the PNG files and frames.jsonl; created when absent.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    /// The frame shown at this time; may be given more than once.
    #[arg(long, value_name = "TIME", conflicts_with_all = ["fps", "frames", "all_frames", "sampler", "index"])]
    pub at: Vec<String>,

    /// The frame of this number, from 0; may be given more than once.
    #[arg(long, value_name = "I", conflicts_with_all = ["fps", "frames", "all_frames", "sampler"])]
    pub index: Vec<u64>,

    /// Size as in the video, or as the model gets it.
    #[arg(long, value_enum, default_value_t = FrameSize::Native)]
    pub size: FrameSize,

    /// The model whose preprocessing `--size model` applies.
    #[arg(long, short, value_name = "MODEL", required_if_eq("size", "model"))]
    pub model: Option<PathBuf>,

    #[command(flatten)]
    pub pixels: PixelArgs,
}

/// Size of written frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FrameSize {
    /// As in the video: upright, square pixels.
    Native,
    /// After the model's resize and crop.
    Model,
}

/// `longreel encode`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  longreel encode a.mp4 --out a.reel --model lwm/ --fps 1\n  \
                        longreel encode cam1.mp4 cam2.mp4 --out day.reel --model org/name --fps 1\n\n\
                        A stopped run leaves OUT.partial; the same command goes on behind it."
)]
pub struct EncodeArgs {
    /// Videos or images.
    #[arg(required = true, value_name = "VIDEO|IMAGE")]
    pub videos: Vec<PathBuf>,

    /// The reel to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// A model directory, or org/name on the hub.
    #[arg(long, short, value_name = "MODEL")]
    pub model: PathBuf,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub pixels: PixelArgs,

    /// Element type; bf16 for features and f16 for vectors when absent.
    #[arg(long, value_enum, value_name = "TYPE")]
    pub reel_dtype: Option<ReelDtypeArg>,

    /// Replace an existing reel.
    #[arg(long)]
    pub force: bool,
}

/// `longreel search`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  longreel encode a.mp4 b.mp4 --out day.reel --model clip/ --fps 1\n  \
                        longreel search \"a red boat\" day.reel --top 5\n  \
                        longreel search --image boat.png day.reel night.reel --json"
)]
pub struct SearchArgs {
    /// The text to search for (left out with --image), then reels of vectors made by one model.
    #[arg(required = true, num_args = 1.., value_name = "QUERY REEL...")]
    pub inputs: Vec<OsString>,

    /// Search with this picture instead of a text.
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,

    /// Largest number of moments.
    #[arg(long, default_value_t = 10, value_name = "K")]
    pub top: usize,

    /// Frames of a video closer in time than this to a better match belong to its moment; 0: each frame is a moment.
    #[arg(long, default_value = "2", value_name = "TIME")]
    pub min_gap: String,

    /// The model that made the vectors; the reels name it when absent.
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<PathBuf>,
}

/// `longreel reconstruct`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  longreel reconstruct a.reel --out a-seen.mp4 --model lwm/")]
pub struct ReconstructArgs {
    /// The reel.
    pub reel: PathBuf,

    /// The video (.mp4) or image (.png) to write.
    #[arg(long, value_name = "VIDEO")]
    pub out: PathBuf,

    /// The model whose VQGAN encoded the reel.
    #[arg(long, short, value_name = "MODEL")]
    pub model: PathBuf,

    /// Frames per second of the video written.
    #[arg(long, default_value = "4", value_name = "F")]
    pub fps: String,
}

/// `longreel generate`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  longreel generate \"a red boat on a lake\" --out boat.png --model lwm/\n  \
                        longreel generate \"fireworks over the sea\" --out clip.mp4 --n-frames 8 --model lwm/"
)]
pub struct GenerateArgs {
    /// Description of the picture or video.
    pub prompt: String,

    /// The image (.png) or video (.mp4) to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// A model directory, or org/name on the hub.
    #[arg(long, short, value_name = "MODEL")]
    pub model: PathBuf,

    /// Frames of a video.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub n_frames: usize,

    /// Classifier-free guidance scale of an image, or of a video's first frame; 1 switches it off.
    #[arg(long, default_value_t = 5.0, value_name = "S")]
    pub cfg_image: f64,

    /// Classifier-free guidance scale of a video's later frames; 1 switches it off.
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    pub cfg_video: f64,

    /// 0 takes the most likely code; above 0 samples at that temperature.
    #[arg(long, default_value_t = 1.0, value_name = "T")]
    pub temperature: f64,

    /// Sample an image's codes among the K most likely.
    #[arg(long, default_value_t = 8192, value_name = "K")]
    pub top_k_image: usize,

    /// Sample the codes of a video's later frames among the K most likely.
    #[arg(long, default_value_t = 1000, value_name = "K")]
    pub top_k_video: usize,

    /// The same seed gives the same picture.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,

    /// Frames per second of the video written.
    #[arg(long, default_value = "4", value_name = "F")]
    pub fps: String,

    /// Add the generated ids to the JSON.
    #[arg(long)]
    pub debug_ids: bool,
}

/// Split of the synthetic clips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitArg {
    /// For training: seven of eight stories.
    Train,
    /// For evaluation: the other stories.
    Test,
}

/// `longreel demo`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  longreel demo --out demo/\n  \
                        longreel demo --model runs/stage_2/model --out demo/ --seed 7 --json\n\n\
                        The clip is one of `longreel synth`, of the stories that are not for training: every question \
                        of it is asked, and what is true stands beside what is said.")]
pub struct DemoArgs {
    /// Directory of the clip; that of an earlier call is replaced.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// A model directory, org/name on the hub, or a GGUF file [default: the demo model built into the program].
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<PathBuf>,

    /// The same seed gives the same clip; when absent, the current time in seconds.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Seconds of the clip.
    #[arg(
        long,
        visible_alias = "seconds",
        default_value_t = 4,
        value_name = "SECONDS"
    )]
    pub length: u32,

    /// Largest number of objects at a time: 1 to 3.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub difficulty: u8,

    /// Black backgrounds only; the default where no model is named.
    #[arg(long)]
    pub plain: bool,
}

/// `longreel synth`
#[derive(Debug, Args)]
#[command(
    after_help = "Writes OUT/clips/000000.mp4 and so on, OUT/questions.jsonl (one line a clip: what happens when,\n\
                        questions, answers, and where each is to be seen), and OUT/synth.json. The same options give\n\
                        the same clips, and go on where they were stopped. No story of one split is in the other.\n\n\
                        Examples:\n  longreel synth --clips 100 --out world/\n  \
                        longreel synth --clips 50 --split test --difficulty 3 --out exam/ --json\n  \
                        longreel synth --clips 30 --needle --length 60,600 --depth 0,50,100 --split test --out hay/"
)]
pub struct SynthArgs {
    /// Number of clips.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub clips: u64,

    /// The directory to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// The same seed gives the same clips.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,

    /// The split: for training or for evaluation.
    #[arg(long, value_enum, default_value_t = SplitArg::Train)]
    pub split: SplitArg,

    /// Seconds of a clip; with several values, clips take them in turn.
    #[arg(
        long,
        visible_alias = "seconds",
        value_name = "SECONDS",
        value_delimiter = ',',
        default_value = "16"
    )]
    pub length: Vec<u32>,

    /// Largest number of objects at a time: 1 to 3.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub difficulty: u8,

    /// Needle clips: one coloured object for one second among drifting grey blobs.
    #[arg(long)]
    pub needle: bool,

    /// Depth of the needle, in percent of the clip; with several values, each is used with every length.
    #[arg(long, value_name = "PERCENT", value_delimiter = ',')]
    pub depth: Vec<u32>,

    /// Amplitude of the noise of every pixel, in levels of 255.
    #[arg(long, default_value_t = 0, value_name = "LEVELS")]
    pub noise: u8,

    /// Black backgrounds only.
    #[arg(long)]
    pub plain: bool,

    /// Only questions of these kinds; `story` (everything that happens, in one answer) is asked only if it is named.
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = QUESTION_NAMES)]
    pub kinds: Vec<String>,

    /// Questions of each kind per clip.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub per_kind: usize,

    /// Width and height, in pixels.
    #[arg(long, default_value_t = 96, value_name = "PIXELS")]
    pub side: usize,

    /// Frames per second, a whole number.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub fps: u32,

    /// Replace clips that other options made.
    #[arg(long)]
    pub force: bool,
}

/// How imported weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightDtypeArg {
    /// 4 bytes per weight.
    F32,
    /// 2 bytes per weight.
    Bf16,
    /// As in the checkpoint (half precision becomes bf16 only when exact, else f32).
    Stored,
}

/// `longreel import`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  longreel import --spec configs/models/lwm-chat-1m.toml --params params::streaming_params_1m \\\n      \
                        --vqgan vqgan --tokenizer tokenizer.model --out lwm-1m/\n  \
                        longreel import --hf LWM-Text-Chat-1M/ --out lwm-text-1m/"
)]
pub struct ImportArgs {
    /// The model's specification (TOML), for checkpoints that hold weights only.
    #[arg(long, value_name = "TOML", required_unless_present = "hf")]
    pub spec: Option<PathBuf>,

    /// LWM's streaming checkpoint: PATH, params::PATH, trainstate_params::PATH or flax_params::PATH.
    #[arg(long, value_name = "[FORM::]PATH", required_unless_present = "hf")]
    pub params: Option<String>,

    /// LWM's VQGAN checkpoint (a pickle; no code in it is executed).
    #[arg(long, value_name = "PATH", conflicts_with = "hf")]
    pub vqgan: Option<PathBuf>,

    /// tokenizer.model, tokenizer.json, or a directory that has one of them.
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "hf",
        conflicts_with = "hf"
    )]
    pub tokenizer: Option<PathBuf>,

    /// A Hugging Face LLaMA or Mistral directory (safetensors or .bin).
    #[arg(long, value_name = "DIR", conflicts_with_all = ["spec", "params"])]
    pub hf: Option<PathBuf>,

    /// The model directory to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// How weights are stored.
    #[arg(long, value_enum, default_value_t = WeightDtypeArg::Stored)]
    pub dtype: WeightDtypeArg,

    /// Replace an existing model directory.
    #[arg(long)]
    pub force: bool,
}

/// `longreel models`
#[derive(Debug, Subcommand)]
pub enum ModelsVerb {
    /// Models in the hub cache.
    List,
    /// Shape, size and files of a model.
    Show {
        /// A model directory, org/name on the hub, or a GGUF file.
        model: PathBuf,
    },
    /// Check every tensor's name, shape and values.
    Verify {
        /// A model directory, org/name on the hub, or a GGUF file.
        model: PathBuf,
    },
    /// Fetch a model from the hub into the cache; resumes an interrupted download.
    Pull {
        /// org/name, or org/name@revision.
        model: PathBuf,
    },
}

/// `longreel plan`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  longreel plan a.mp4 --model lwm/ --fps 1\n  longreel plan --hours 2 --fps 1 --model lwm/ --kv-dtype bf16"
)]
pub struct PlanArgs {
    /// Videos, images or reels.
    #[arg(value_name = "VIDEO")]
    pub videos: Vec<PathBuf>,

    /// A model directory, org/name on the hub, a GGUF file, or a .toml model file; for an encoder, what `encode`
    /// would take is planned.
    #[arg(long, short, value_name = "MODEL")]
    pub model: PathBuf,

    /// A GGUF file whose decoder replaces the model's own.
    #[arg(long, value_name = "FILE.gguf")]
    pub decoder: Option<PathBuf>,

    #[command(flatten)]
    pub gguf: GgufArgs,

    #[command(flatten)]
    pub template: TemplateArgs,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub pixels: PixelArgs,

    /// Plan for this many hours of video instead of a file (with --fps).
    #[arg(long, value_name = "H", conflicts_with_all = ["videos", "sampler"])]
    pub hours: Option<f64>,

    /// The question, whose tokens are counted.
    #[arg(long, default_value = SHORT_QUESTION, value_name = "TEXT")]
    pub question: String,

    /// Tell the model the times of the frames; as for `ask`.
    #[arg(long, value_enum)]
    pub time_instruction: Option<SwitchArg>,

    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub max_new_tokens: usize,

    /// How keys and values are stored.
    #[arg(long, value_enum, default_value_t = KvDtypeArg::F32)]
    pub kv_dtype: KvDtypeArg,

    /// Plan for this much memory, in GiB, instead of this machine's.
    #[arg(long, value_name = "GIB")]
    pub memory_gib: Option<f64>,

    /// Measure this machine briefly and predict seconds.
    #[arg(long, action = ArgAction::SetTrue)]
    pub measure: bool,
}

/// `longreel bench`
#[derive(Debug, Subcommand)]
pub enum BenchVerb {
    /// Operations per second of every kernel, as a share of the machine's peak.
    Kernels(KernelsArgs),
    /// Seconds and memory of long contexts, on one rank or several.
    Context(ContextArgs),
    /// Accuracy of answers to questions about clips, by kind, next to that of always giving the most frequent answer.
    Answers(AnswersArgs),
}

/// `longreel bench answers`
#[derive(Debug, Args)]
#[command(
    after_help = "CLIPS has questions.jsonl, as `longreel synth` writes it. Every question is asked in a context of its\n\
                        own. 'prior' is what the most frequent answer of a kind gets, 'by form' what the most frequent\n\
                        answer to each form of question gets: the best without looking.\n\n\
                        Examples:\n  longreel bench answers clips/ --model demo/\n  \
                        longreel bench answers clips/ --model demo/ --noise\n  \
                        longreel synth --out needles/ --needle --length 16,64 --depth 0,50,100 --split test\n  \
                        longreel bench answers needles/ --model demo/ --heat-map needles.svg"
)]
pub struct AnswersArgs {
    /// Directory of clips.
    pub clips: PathBuf,

    /// A model directory, org/name on the hub, or a GGUF file; the demo model when absent.
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<PathBuf>,

    #[command(flatten)]
    pub gguf: GgufArgs,

    #[command(flatten)]
    pub template: TemplateArgs,

    /// Frames per second.
    #[arg(long, default_value = "1", value_name = "RATE")]
    pub fps: String,

    /// Only the first N clips.
    #[arg(long, value_name = "N")]
    pub first: Option<usize>,

    /// Replace each clip by noise of the same length.
    #[arg(long)]
    pub noise: bool,

    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub max_new_tokens: usize,

    /// Write every question with its answers to this file, one JSON object per line.
    #[arg(long, value_name = "FILE.jsonl")]
    pub answers: Option<PathBuf>,

    /// Draw the share of needles found, by length and depth, as a picture.
    #[arg(long, value_name = "FILE.svg")]
    pub heat_map: Option<PathBuf>,

    /// Append the rows to this file, one JSON object per line.
    #[arg(long, value_name = "FILE.jsonl")]
    pub out: Option<PathBuf>,
}

/// `longreel bench context`
#[derive(Debug, Args)]
#[command(
    after_help = "A model file gives the shape, its weights are random then. Each length is prefilled, and\n\
                        asked about on forks of the context; 'share' is a later question's cost against prefill\n\
                        and first question, 'of bound' the peak memory against weights, keys and values of\n\
                        this rank, two blocks a layer and 64 MiB. Ranks that are equal to the bit have the same\n\
                        'logits'.\n\n\
                        Examples:\n  longreel bench context --model configs/measure/micro.toml --tokens 65536,131072\n  \
                        longreel bench context --model lwm/ --tokens 32768 --kv-dtype bf16 --ring 2\n  \
                        mpirun -n 2 longreel bench context --model lwm/ --tokens 32768 --threads 1 --json"
)]
pub struct ContextArgs {
    /// A model directory, org/name on the hub, a GGUF file, or a .toml model file.
    #[arg(long, short, value_name = "MODEL")]
    pub model: PathBuf,

    #[command(flatten)]
    pub gguf: GgufArgs,

    /// Tokens of the context; several values are measured one after the other.
    #[arg(long, value_name = "N", value_delimiter = ',', required = true)]
    pub tokens: Vec<usize>,

    /// Tokens of a question after the context.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub question: usize,

    /// Tokens of an answer.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub answer: usize,

    /// How keys and values are stored.
    #[arg(long, value_enum, default_value_t = KvDtypeArg::F32)]
    pub kv_dtype: KvDtypeArg,

    /// Tokens per prefill step and rank.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub prefill_chunk: usize,

    /// Number of ranks that share the context; under `mpirun` a rank is a process.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub ring: Option<u16>,

    /// Seconds without a message after which another process counts as lost.
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    pub ring_timeout: f64,

    /// Append the rows to this file, one JSON object per line.
    #[arg(long, value_name = "FILE.jsonl")]
    pub out: Option<PathBuf>,
}

/// `longreel bench kernels`
#[derive(Debug, Args)]
#[command(
    after_help = "Each row tells the median of its repeats and, in brackets, the least and the largest. The\n\
                        ceilings are measured between the repeats: multiply-adds in registers, and reading a\n\
                        buffer larger than the caches. Causal attention counts 2 S^2 d heads operations.\n\
                        --threads takes several numbers here, as in 1,2.\n\n\
                        Examples:\n  longreel bench kernels\n  \
                        longreel bench kernels --op attend --s 8192,32768 --dtype f32,bf16 --threads 1,2 --out mine.jsonl\n  \
                        longreel bench kernels --op decode --level avx2,avx512 --json\n  \
                        longreel bench kernels --op attend --peer \"python3 benches/peers/torch_sdpa.py\""
)]
pub struct KernelsArgs {
    /// Operations to measure; all when absent.
    #[arg(long, value_name = "OP", value_delimiter = ',', value_parser = OP_NAMES)]
    pub op: Vec<String>,

    /// Element types of keys, values and weights [default: f32,bf16,int8].
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = DTYPE_NAMES)]
    pub dtype: Vec<String>,

    /// Sequence lengths of `attend` [default: 8192,32768].
    #[arg(long, value_name = "S", value_delimiter = ',')]
    pub s: Vec<usize>,

    /// Tokens in the KV cache of `decode` [default: 131072].
    #[arg(long, value_name = "N")]
    pub cache: Option<usize>,

    /// Channels of a head.
    #[arg(long, default_value_t = 128, value_name = "D")]
    pub d: usize,

    /// Query heads.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub heads: usize,

    /// Key and value heads; as many as query heads when absent.
    #[arg(long, value_name = "N")]
    pub kv_heads: Option<usize>,

    /// Instruction sets, of those that this machine has; the widest when absent.
    #[arg(long, value_name = "LEVEL", value_delimiter = ',', value_parser = LEVEL_NAMES)]
    pub level: Vec<String>,

    /// Timed repeats of each row; at least 5 and one second when absent.
    #[arg(long, value_name = "N")]
    pub repeats: Option<usize>,

    /// Small shapes and short measurements, to check that everything runs; its figures mean nothing.
    #[arg(long)]
    pub quick: bool,

    /// A program that performs the same operations, measured in turn (benches/README.md).
    #[arg(long, value_name = "COMMAND")]
    pub peer: Option<String>,

    /// Append the rows to this file, one JSON object per line.
    #[arg(long, value_name = "FILE.jsonl")]
    pub out: Option<PathBuf>,
}

/// Names of `longreel::bench::case::Op`.
const OP_NAMES: [&str; 9] = [
    "attend",
    "decode",
    "linear",
    "linear-one",
    "conv",
    "group-norm",
    "rms-norm",
    "rope",
    "swiglu",
];

/// Names of `longreel_kernels::attend::KvDtype`.
const DTYPE_NAMES: [&str; 4] = ["f32", "bf16", "int8", "int4"];

/// Names of `longreel_kernels::cpu::Level`.
const LEVEL_NAMES: [&str; 5] = ["scalar", "neon", "avx2", "avx512", "avx512bf16"];

/// Names of `longreel::synth::questions::QuestionKind`.
const QUESTION_NAMES: [&str; 9] = [
    "shape", "colour", "motion", "count", "order", "when", "what_at", "needle", "story",
];

/// What to train.
#[derive(Debug, Subcommand)]
pub enum TrainVerb {
    /// A decoder, on text and frame codes.
    Decoder(TrainDecoderArgs),
    /// A VQGAN, on frames of videos: it turns frames into the codes that a decoder reads.
    Vqgan(TrainVqganArgs),
    /// Turn clips with questions into training examples (JSON lines) for a decoder.
    MakeLines(TrainMakeLinesArgs),
    /// Have a model write questions and answers about a long text or video, as training examples (JSON lines).
    MakeQa(TrainMakeQaArgs),
    /// Learn a tokenizer from texts.
    Tokenizer(TrainTokenizerArgs),
}

/// `longreel train vqgan`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  longreel train vqgan vqgan.toml --out runs/vqgan/\n  \
                        longreel encode clip.mp4 --model runs/vqgan/model --out clip.reel\n  \
                        longreel reconstruct clip.reel --model runs/vqgan/model --out seen.mp4\n\n\
                        The frames of all videos are decoded once, into OUT/frames.rgb; a video that cannot be read \
                        is left out and named. A stopped run leaves a checkpoint in OUT; the same command goes on \
                        behind it, with the same result to the bit. OUT/metrics.jsonl has the figures of every step, \
                        OUT/loss.svg shows them, OUT/model/ is the model directory: `encode` and `reconstruct` take \
                        it, and `model.vqgan` of `train decoder`."
)]
pub struct TrainVqganArgs {
    /// Configuration of the run: model, data, recipe (TOML).
    pub config: PathBuf,

    /// Directory of the run.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// How the trained model's weights are stored.
    #[arg(long, value_enum, default_value_t = WeightDtypeArg::F32)]
    pub dtype: WeightDtypeArg,
}

/// `longreel train make-lines`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  longreel synth --out clips/ --clips 1000 --fps 1\n  \
                        longreel train make-lines clips/ --model runs/vqgan/model --out lines.jsonl\n\n\
                        CLIPS has questions.jsonl, as `longreel synth` writes it. A line holds what `ask` would put \
                        into the context, the codes of the frames included, and the answers. A stopped run goes on \
                        where it was."
)]
pub struct TrainMakeLinesArgs {
    /// Directory of clips.
    pub clips: PathBuf,

    /// The model directory whose VQGAN encodes frames.
    #[arg(long, short, value_name = "MODEL")]
    pub model: PathBuf,

    /// The file to write.
    #[arg(long, value_name = "FILE.jsonl")]
    pub out: PathBuf,

    /// Frames per second, as `ask` will be given.
    #[arg(long, default_value = "1", value_name = "RATE")]
    pub fps: String,

    /// Largest number of questions per line: the first precedes the frames, the others follow them. A clip's
    /// further questions go to further lines. Questions of one clip reveal one another's answers, so that a model that
    /// gets several at once may learn from them instead of the frames.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub questions: usize,

    /// Seed of the order of questions.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,

    /// Train on answers only, not on the codes of frames.
    #[arg(long)]
    pub answers_only: bool,

    /// Replace FILE.jsonl.
    #[arg(long)]
    pub force: bool,
}

/// `longreel train make-qa`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  longreel train make-qa book.txt --model chat/ --out qa.jsonl --context 32768\n  \
                        longreel train make-qa archive.reel --model lwm/ --chunk 8 --pairs 3 --out qa.jsonl\n\n\
                        INPUT is cut into chunks, and the model is asked for questions and answers about each. A line \
                        holds as many chunks as its tokens allow, then all their questions; only answers are predicted. \
                        A stopped run goes on where it was."
)]
pub struct TrainMakeQaArgs {
    /// A text file, or a reel of codes that `encode` made.
    pub input: PathBuf,

    /// The model that writes: a directory, org/name on the hub, or a GGUF file.
    #[arg(long, short, value_name = "MODEL")]
    pub model: PathBuf,

    #[command(flatten)]
    pub gguf: GgufArgs,

    #[command(flatten)]
    pub template: TemplateArgs,

    /// The file to write.
    #[arg(long, value_name = "FILE.jsonl")]
    pub out: PathBuf,

    /// Approximate tokens of text per chunk, or frames of a reel [default: 1024 tokens, 16 frames].
    #[arg(long, value_name = "N")]
    pub chunk: Option<usize>,

    /// Largest number of question-answer pairs per chunk.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub pairs: usize,

    /// Largest number of tokens of a line; the model's context length when absent.
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,

    /// Longest answer about a chunk, in tokens.
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub max_new_tokens: usize,

    /// File with an instruction that replaces the default one; `{pairs}` stands for the number of pairs. It must ask for
    /// lines `Question: ...` and `Answer: ...`.
    #[arg(long, value_name = "FILE")]
    pub prompt: Option<PathBuf>,

    #[command(flatten)]
    pub draw: DrawArgs,

    /// Replace FILE.jsonl, and the unfinished file of a stopped run with other options.
    #[arg(long)]
    pub force: bool,
}

/// `longreel train tokenizer`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  longreel train tokenizer lines.jsonl --vocab-size 512 --out tokenizer/\n\n\
                        Of a .jsonl file the texts of its lines are read, of another file all of it."
)]
pub struct TrainTokenizerArgs {
    /// Text files, or JSON lines.
    #[arg(required = true, num_args = 1.., value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Largest size of the vocabulary.
    #[arg(long, default_value_t = 32_000, value_name = "N")]
    pub vocab_size: usize,

    /// Directory to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Replace an existing tokenizer.
    #[arg(long)]
    pub force: bool,
}

/// `longreel train decoder`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  longreel train decoder configs/train/text.toml --out runs/text/\n\n\
                        A stopped run leaves a checkpoint in OUT; the same command goes on behind it, with the \
                        same result to the bit. OUT/metrics.jsonl has the figures of every step, OUT/loss.svg \
                        shows them, OUT/model/ is the model directory."
)]
pub struct TrainDecoderArgs {
    /// Configuration of the stage: model, data, recipe (TOML).
    pub config: PathBuf,

    /// Directory of the run.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Number of ranks that share every sequence, each with its part of the threads.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub ring: Option<u16>,

    /// How the trained model's weights are stored.
    #[arg(long, value_enum, default_value_t = WeightDtypeArg::F32)]
    pub dtype: WeightDtypeArg,
}
