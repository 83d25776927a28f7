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
    /// Make clips of a synthetic world, with questions and exact answers.
    Synth(SynthArgs),
    /// Make a clip that no training saw, ask a model all about it, and compare.
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
    /// Train a model by LWM's recipe.
    #[command(
        subcommand,
        after_help = "Examples:\n  longreel train decoder configs/train/text.toml --out runs/text/\n  \
                        longreel train decoder configs/train/text.toml --out runs/text/ --ring 2\n  \
                        longreel train vqgan vqgan.toml --out runs/vqgan/"
    )]
    Train(TrainVerb),
    /// Measure this machine and what the program makes of it.
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

/// Frames chosen by what they show.
#[derive(Debug, Clone, Args, Default)]
pub struct ChoosingArgs {
    /// Choose by what frames show, in a pass before: out of one a second, whatever the model's own
    /// rule, or out of those of --fps or --all-frames.
    #[arg(long, value_enum)]
    pub sampler: Option<SamplerArg>,

    /// Keep a frame that differs by more from the last one kept, as a share of black against white
    /// [default: 0.01].
    #[arg(long, value_name = "X", requires = "sampler")]
    pub change_threshold: Option<f64>,

    /// Leave no longer hole between changed frames.
    #[arg(long, value_name = "TIME", requires = "sampler")]
    pub max_gap: Option<String>,

    /// CLIP or SigLIP, for --sampler query: a directory, or org/name on the hub.
    #[arg(long, value_name = "MODEL", requires = "sampler")]
    pub query_model: Option<PathBuf>,

    /// What the frames should show, for --sampler query; the question of `ask` when absent.
    #[arg(long, value_name = "TEXT", requires = "sampler")]
    pub query: Option<String>,

    /// A reel of vectors of the videos: its frames are the candidates, and nothing is encoded again.
    #[arg(long, value_name = "FILE", requires = "sampler", conflicts_with_all = ["fps", "all_frames"])]
    pub query_reel: Option<PathBuf>,

    /// Frames nearest to a query lie no nearer to one another than this.
    #[arg(long, value_name = "TIME", requires = "sampler")]
    pub min_gap: Option<String>,
}

/// By what frames are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SamplerArg {
    /// Those that differ from the last one kept; with --frames the first and those that differ most.
    Change,
    /// The --frames that CLIP or SigLIP finds nearest to a text.
    Query,
}

/// The budget of pixels of models that take frames of any size (Qwen2.5-VL, Qwen3-VL).
#[derive(Debug, Clone, Args, Default)]
pub struct PixelArgs {
    /// Fewest pixels of a frame (Qwen3-VL: of all frames together); the model's processor decides when absent.
    #[arg(long, value_name = "N")]
    pub min_pixels: Option<usize>,

    /// Most pixels, likewise.
    #[arg(long, value_name = "N")]
    pub max_pixels: Option<usize>,
}

/// How ids are drawn.
#[derive(Debug, Clone, Args)]
pub struct DrawArgs {
    /// 0 takes the most likely token; above 0 draws at that temperature.
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    pub temperature: f64,

    /// Draw among the K most likely tokens only.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,

    /// Draw among the most likely tokens whose probabilities add up to P.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,

    /// The same seed gives the same answer.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvDtypeArg {
    /// 4 bytes an element, exact.
    F32,
    /// 2 bytes an element.
    Bf16,
    /// 1 byte an element and a scale per token and head.
    Int8,
    /// Half a byte an element and a scale per 32 channels.
    Int4,
}

/// How the numbers of a reel are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReelDtypeArg {
    /// 4 bytes a number, exact.
    F32,
    /// 2 bytes, 8 bits of precision.
    Bf16,
    /// 2 bytes, 11 bits of precision, numbers up to 65504.
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

/// Where text goes on behind a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AfterVideoArg {
    /// Behind its highest position, as when these models came out.
    Highest,
    /// Behind its longest side, as transformers 5 has it: later text may stand inside a long video's time.
    Side,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SwitchArg {
    /// It is.
    On,
    /// It is not.
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

    /// A model directory, org/name on the hub, or a GGUF file [default: the small demo model that comes with the
    /// program, which knows clips like those of `longreel synth --plain --length 4` and nothing else; it is kept in
    /// ~/.cache/longreel].
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<PathBuf>,

    /// A GGUF file whose decoder takes the place of the model's own.
    #[arg(long, requires = "model", value_name = "FILE.gguf")]
    pub decoder: Option<PathBuf>,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub pixels: PixelArgs,

    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub max_new_tokens: usize,

    #[command(flatten)]
    pub draw: DrawArgs,

    /// Stop the answer before this text; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// How keys and values are kept.
    #[arg(long, value_enum, default_value_t = KvDtypeArg::F32)]
    pub kv_dtype: KvDtypeArg,

    /// Tokens per prefill step and rank: more is faster, less takes less memory.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub prefill_chunk: usize,

    /// Share the context among so many ranks, each with its part of the threads; under `mpirun` a
    /// rank is a process.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub ring: Option<u16>,

    /// Seconds of silence after which another process counts as lost.
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    pub ring_timeout: f64,

    /// What follows a frame's codes; the model's configuration decides when absent.
    #[arg(long, value_enum)]
    pub frame_end: Option<FrameEndArg>,

    /// Where text goes on behind a video (Qwen2-VL, Qwen2.5-VL).
    #[arg(long, value_enum)]
    pub after_video: Option<AfterVideoArg>,

    /// Tell the model the times of the frames, before the question (LLaVA-Video, LLaVA-OneVision); as it was trained
    /// when absent.
    #[arg(long, value_enum)]
    pub time_instruction: Option<SwitchArg>,

    /// Print the answer as it is made.
    #[arg(long)]
    pub stream: bool,

    /// Go on asking: one follow-up question per line on stdin; the context is kept.
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

    /// Directory for the PNG files and frames.jsonl; made when absent.
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

    /// As in the video, or as the model is shown it.
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

    /// How numbers are kept; features in bf16 and vectors in f16 when absent.
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
    /// What to look for (left out with --image), then reels of vectors made by one model.
    #[arg(required = true, num_args = 1.., value_name = "QUERY REEL...")]
    pub inputs: Vec<OsString>,

    /// Look for what this picture shows.
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,

    /// Most moments.
    #[arg(long, default_value_t = 10, value_name = "K")]
    pub top: usize,

    /// Frames of a video nearer than this to a better one belong to its moment; 0: every frame for itself.
    #[arg(long, default_value = "2", value_name = "TIME")]
    pub min_gap: String,

    /// Where the model lies that made the vectors; the reels say it when absent.
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

    /// The model whose VQGAN made the reel.
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
    /// What to show.
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

    /// Classifier-free guidance of an image, or of a video's first frame; 1 is none.
    #[arg(long, default_value_t = 5.0, value_name = "S")]
    pub cfg_image: f64,

    /// Classifier-free guidance of a video's later frames; 1 is none.
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    pub cfg_video: f64,

    /// 0 takes the most likely code; above 0 draws at that temperature.
    #[arg(long, default_value_t = 1.0, value_name = "T")]
    pub temperature: f64,

    /// Draw an image's codes among the K most likely.
    #[arg(long, default_value_t = 8192, value_name = "K")]
    pub top_k_image: usize,

    /// Draw a video's later codes among the K most likely.
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

/// What synthetic clips are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitArg {
    /// To learn from: seven of eight stories.
    Train,
    /// To measure with: the others.
    Test,
}

/// `longreel demo`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  longreel demo --out demo/\n  \
                        longreel demo --model runs/stage_2/model --out demo/ --seed 7 --json\n\n\
                        The clip is one of `longreel synth`, of the stories that are not for training: every question \
                        of it is asked, and what is true stands beside what is said.")]
pub struct DemoArgs {
    /// The directory of the clip; one of an earlier call is replaced.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// A model directory, org/name on the hub, or a GGUF file [default: the demo model that comes with the program].
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<PathBuf>,

    /// The same seed gives the same clip; another one every second when absent.
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

    /// Most objects at a time: 1 to 3.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub difficulty: u8,

    /// Black backgrounds only; so it is where no model is named.
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
    /// How many clips.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub clips: u64,

    /// The directory to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// The same seed gives the same clips.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,

    /// What they are for.
    #[arg(long, value_enum, default_value_t = SplitArg::Train)]
    pub split: SplitArg,

    /// Seconds of a clip; of several, clips take one after the other.
    #[arg(
        long,
        visible_alias = "seconds",
        value_name = "SECONDS",
        value_delimiter = ',',
        default_value = "16"
    )]
    pub length: Vec<u32>,

    /// Most objects at a time: 1 to 3.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub difficulty: u8,

    /// One coloured object in one second among drifting grey blobs.
    #[arg(long)]
    pub needle: bool,

    /// Where the needle lies, in percent of the clip; of several, each for every length in turn.
    #[arg(long, value_name = "PERCENT", value_delimiter = ',')]
    pub depth: Vec<u32>,

    /// Levels of noise, up or down, in every pixel.
    #[arg(long, default_value_t = 0, value_name = "LEVELS")]
    pub noise: u8,

    /// Black backgrounds only.
    #[arg(long)]
    pub plain: bool,

    /// Only questions of these kinds; `story`, all that happens in one answer, is asked where it is named.
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = QUESTION_NAMES)]
    pub kinds: Vec<String>,

    /// Questions of each kind for a clip.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub per_kind: usize,

    /// Pixels of a side.
    #[arg(long, default_value_t = 96, value_name = "PIXELS")]
    pub side: usize,

    /// Frames in a second, a whole number.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub fps: u32,

    /// Replace clips that were made with other options.
    #[arg(long)]
    pub force: bool,
}

/// How imported weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightDtypeArg {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight.
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
    /// The model's shape, for checkpoints that hold weights only.
    #[arg(long, value_name = "TOML", required_unless_present = "hf")]
    pub spec: Option<PathBuf>,

    /// LWM's streaming checkpoint: PATH, params::PATH, trainstate_params::PATH or flax_params::PATH.
    #[arg(long, value_name = "[FORM::]PATH", required_unless_present = "hf")]
    pub params: Option<String>,

    /// LWM's VQGAN checkpoint (a pickle; nothing in it is executed).
    #[arg(long, value_name = "PATH", conflicts_with = "hf")]
    pub vqgan: Option<PathBuf>,

    /// tokenizer.model, tokenizer.json, or a directory that has one.
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
    /// Fetch a model from the hub into the cache; goes on where it stopped.
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

    /// A model directory, org/name on the hub, a GGUF file, or a .toml model file; of an encoder alone, what `encode`
    /// takes is planned.
    #[arg(long, short, value_name = "MODEL")]
    pub model: PathBuf,

    /// A GGUF file whose decoder takes the place of the model's own.
    #[arg(long, value_name = "FILE.gguf")]
    pub decoder: Option<PathBuf>,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub pixels: PixelArgs,

    /// Plan for this many hours of video instead of a file (with --fps).
    #[arg(long, value_name = "H", conflicts_with_all = ["videos", "sampler"])]
    pub hours: Option<f64>,

    /// The question, where its length matters.
    #[arg(long, default_value = SHORT_QUESTION, value_name = "TEXT")]
    pub question: String,

    /// Tell the model the times of the frames; as for `ask`.
    #[arg(long, value_enum)]
    pub time_instruction: Option<SwitchArg>,

    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub max_new_tokens: usize,

    /// How keys and values are kept.
    #[arg(long, value_enum, default_value_t = KvDtypeArg::F32)]
    pub kv_dtype: KvDtypeArg,

    /// Plan for this much memory, in GiB, instead of this machine's.
    #[arg(long, value_name = "GIB")]
    pub memory_gib: Option<f64>,

    /// Measure this machine for a moment and predict seconds.
    #[arg(long, action = ArgAction::SetTrue)]
    pub measure: bool,
}

/// `longreel bench`
#[derive(Debug, Subcommand)]
pub enum BenchVerb {
    /// Operations per second of every kernel, as a share of the machine's own ceilings.
    Kernels(KernelsArgs),
    /// Seconds and memory of long contexts, on one rank or several.
    Context(ContextArgs),
    /// Exact answers to questions about clips, by kind, against someone who sees nothing.
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
    /// The folder of clips.
    pub clips: PathBuf,

    /// A model directory, org/name on the hub, or a GGUF file; the demo model when absent.
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<PathBuf>,

    /// Frames in a second.
    #[arg(long, default_value = "1", value_name = "RATE")]
    pub fps: String,

    /// Only the first clips.
    #[arg(long, value_name = "N")]
    pub first: Option<usize>,

    /// Show noise of each clip's length in its place.
    #[arg(long)]
    pub noise: bool,

    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub max_new_tokens: usize,

    /// Write every question with its answers to this file, one JSON object a line.
    #[arg(long, value_name = "FILE.jsonl")]
    pub answers: Option<PathBuf>,

    /// Draw needles by length and depth.
    #[arg(long, value_name = "FILE.svg")]
    pub heat_map: Option<PathBuf>,

    /// Append the rows to this file, one JSON object a line.
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

    /// Tokens of the context; several are measured one after another.
    #[arg(long, value_name = "N", value_delimiter = ',', required = true)]
    pub tokens: Vec<usize>,

    /// Tokens of a question on it.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub question: usize,

    /// Tokens of an answer.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub answer: usize,

    /// How keys and values are kept.
    #[arg(long, value_enum, default_value_t = KvDtypeArg::F32)]
    pub kv_dtype: KvDtypeArg,

    /// Tokens per prefill step and rank.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub prefill_chunk: usize,

    /// Share the context among so many ranks; under `mpirun` a rank is a process.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub ring: Option<u16>,

    /// Seconds of silence after which another process counts as lost.
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    pub ring_timeout: f64,

    /// Append the rows to this file, one JSON object a line.
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

    /// Lengths of the prompts of `attend` [default: 8192,32768].
    #[arg(long, value_name = "S", value_delimiter = ',')]
    pub s: Vec<usize>,

    /// Tokens of the cache of `decode` [default: 131072].
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

    /// Instructions, of those that this machine has; the widest when absent.
    #[arg(long, value_name = "LEVEL", value_delimiter = ',', value_parser = LEVEL_NAMES)]
    pub level: Vec<String>,

    /// Timed repeats of each row; at least 5 and one second when absent.
    #[arg(long, value_name = "N")]
    pub repeats: Option<usize>,

    /// Small shapes and short windows, to see that everything runs; no figure to quote.
    #[arg(long)]
    pub quick: bool,

    /// A program that does the same operations, asked in turn (benches/README.md).
    #[arg(long, value_name = "COMMAND")]
    pub peer: Option<String>,

    /// Append the rows to this file, one JSON object a line.
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

/// Words of `longreel::synth::questions::QuestionKind`.
const QUESTION_NAMES: [&str; 9] = [
    "shape", "colour", "motion", "count", "order", "when", "what_at", "needle", "story",
];

/// What to train.
#[derive(Debug, Subcommand)]
pub enum TrainVerb {
    /// A decoder, on text and codes of frames.
    Decoder(TrainDecoderArgs),
    /// A VQGAN, on frames of videos: what turns frames into the codes that a decoder reads.
    Vqgan(TrainVqganArgs),
    /// Turn clips with questions into the lines that a decoder is trained on.
    MakeLines(TrainMakeLinesArgs),
    /// Have a model write questions and answers about a long text or video, as lines that a decoder is trained on.
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
    /// The run: model, data, recipe (TOML).
    pub config: PathBuf,

    /// The folder of the run.
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
    /// The folder of clips.
    pub clips: PathBuf,

    /// The model directory whose VQGAN looks at frames.
    #[arg(long, short, value_name = "MODEL")]
    pub model: PathBuf,

    /// The file to write.
    #[arg(long, value_name = "FILE.jsonl")]
    pub out: PathBuf,

    /// Frames in a second, as `ask` will take them.
    #[arg(long, default_value = "1", value_name = "RATE")]
    pub fps: String,

    /// Most questions of a line: the first stands before the frames, the others follow it. What a clip has more goes to
    /// further lines. Questions of one clip tell of one another's answers, so that a model that gets several learns to
    /// read them instead of the frames.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub questions: usize,

    /// Of the order of questions.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,

    /// Predict answers alone, not the codes of frames.
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
    /// A text, or a reel of codes that `encode` made.
    pub input: PathBuf,

    /// The model that writes: a directory, org/name on the hub, or a GGUF file.
    #[arg(long, short, value_name = "MODEL")]
    pub model: PathBuf,

    /// The file to write.
    #[arg(long, value_name = "FILE.jsonl")]
    pub out: PathBuf,

    /// About so many tokens of text in a chunk, or frames of a reel [default: 1024 tokens, 16 frames].
    #[arg(long, value_name = "N")]
    pub chunk: Option<usize>,

    /// Most pairs of question and answer about a chunk.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub pairs: usize,

    /// Most tokens of a line; those of the model's context when absent.
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,

    /// Longest answer about a chunk, in tokens.
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub max_new_tokens: usize,

    /// What the model is asked, in place of the usual instruction: `{pairs}` stands for the number. It must ask for lines
    /// `Question: ...` and `Answer: ...`.
    #[arg(long, value_name = "FILE")]
    pub prompt: Option<PathBuf>,

    #[command(flatten)]
    pub draw: DrawArgs,

    /// Replace FILE.jsonl, and what a stopped run with other options left of it.
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
    /// Texts, or lines of JSON.
    #[arg(required = true, num_args = 1.., value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Most tokens of the vocabulary.
    #[arg(long, default_value_t = 32_000, value_name = "N")]
    pub vocab_size: usize,

    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Replace the tokenizer that is there.
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
    /// The stage: model, data, recipe (TOML).
    pub config: PathBuf,

    /// The folder of the run.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Share every row among so many ranks, each with its part of the threads.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub ring: Option<u16>,

    /// How the trained model's weights are stored.
    #[arg(long, value_enum, default_value_t = WeightDtypeArg::F32)]
    pub dtype: WeightDtypeArg,
}
