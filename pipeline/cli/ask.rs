//! `longreel ask`: videos and a question in, an answer out.

use std::{
    io::{BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use longreel_models::{
    attention::ring::Traffic,
    context::{prompt::follow_up, vision_prompt, vocab::Token},
    file_name::FileName,
};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{
        args::AskArgs,
        choosing, open,
        output::{Voice, write_stdout},
        resolve,
    },
    demo_model,
    encoder::StepShape,
    error::{Error, Kind, Result},
    model::{Choices, GgufProducts, Model, ModelFiles},
    plan::{Demand, Plan, peak_memory_bytes},
    prepare,
    ranks::Ranks,
    shown::usual_sampling,
    stages::{
        self, QueueBounds, Viewing,
        answer::{Answer, AnswerOptions, Conversation, Finish},
        decode::Source,
        layout::Layout,
        progress::Progress,
        seen::SourceSeen,
    },
};

#[derive(Serialize)]
struct AskJson<'a> {
    question: &'a str,
    answer: String,
    finish: Finish,
    model: String,
    /// What of the model's files is not followed.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    model_warnings: &'a [String],
    /// The chat template: a file, a key of a GGUF file, or the name of a built-in one; absent for LWM's own prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<&'a str>,
    /// How quantized matrices were multiplied; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    gguf_products: Option<GgufProducts>,
    video: &'a [SourceSeen],
    tokens: Tokens,
    seconds: AskSeconds,
    /// Keys and values in this process.
    kv_bytes: usize,
    peak_memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ring: Option<RingJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_vision_mask: Option<Vec<bool>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generated_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    follow_ups: Vec<FollowUpJson>,
    /// Why the follow-up questions ended early.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Traffic of rank 0.
#[derive(Serialize)]
struct RingJson {
    link: &'static str,
    #[serde(flatten)]
    traffic: Traffic,
}

#[derive(Serialize)]
struct Tokens {
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens of the prompt that are frames.
    vision: usize,
    /// Context length of the model.
    context: usize,
    generated: usize,
}

#[derive(Serialize)]
struct AskSeconds {
    /// Opening the videos and choosing their frames by content.
    #[serde(skip_serializing_if = "Option::is_none")]
    choose: Option<f64>,
    load: f64,
    decode: f64,
    encode: f64,
    prefill: f64,
    generate: f64,
    total: f64,
}

#[derive(Serialize)]
struct FollowUpJson {
    question: String,
    answer: String,
    finish: Finish,
    prompt_tokens: usize,
    generated: usize,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    generated_ids: Option<Vec<u32>>,
}

/// Runs the verb.
pub fn run(args: AskArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = Instant::now();
    let (question, videos) = split_inputs(&args)?;
    if args.model.is_none() && videos.is_empty() {
        let message = "no model and no video is given, and the demo model only answers about videos: expected a video before the question, or --model";
        return Err(Error::new(Kind::Usage, message));
    }
    let options = options(&args)?;
    let ranks = resolve::ranks(args.ring, args.ring_timeout)?;
    if ranks.follows() {
        return follow_the_leader(&args, ranks, voice, cancel);
    }
    let prepared = prepare(&args, question, &videos, &options, &ranks, voice, cancel);
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return Err(ranks.give_up(error)),
    };
    let Prepared {
        sources,
        layout,
        plan,
        model,
        chosen,
    } = prepared;
    // The plan leaves out follow-up questions and videos of unknown length: the KV cache may then grow into the rest.
    let kv_room = plan.kv_room().and_then(|bytes| usize::try_from(bytes).ok());
    let options = AnswerOptions {
        kv_limit_bytes: kv_room.map(|bytes| bytes / ranks.here()),
        ..options
    };
    let asking = Asking {
        ranks_here: ranks.here(),
        args: &args,
        question,
        model: &model,
        link: ranks.link(),
        plan,
        start,
        chosen,
        loaded: start.elapsed().saturating_sub(chosen.unwrap_or_default()),
        voice,
        cancel,
    };
    ranks.lead(&model.decoder, |decoder| {
        asking.ask(Conversation::new(&model, decoder, options), layout, sources)
    })
}

/// Runs a rank other than 0, which takes its work from rank 0.
fn follow_the_leader(args: &AskArgs, ranks: Ranks, voice: Voice, cancel: &Cancel) -> Result<()> {
    let system = open::system_or_demo(args.model.as_deref(), voice, cancel);
    let files = system.and_then(|system| ModelFiles::open_with(&system, choices(args)));
    match files.and_then(|files| files.load()) {
        Ok(model) => ranks.serve(&model.decoder),
        Err(error) => Err(ranks.give_up(error)),
    }
}

/// What the arguments put in the place of the model's own parts.
fn choices(args: &AskArgs) -> Choices<'_> {
    Choices {
        decoder: args.decoder.as_deref(),
        template: args.template.template.as_deref(),
        products: resolve::gguf_products(&args.gguf),
    }
}

/// Says how a text model without a template is asked.
fn note_absent_template(files: &ModelFiles, voice: Voice) {
    if files.template.is_none() && files.spec.vqgan.is_none() && files.spec.vision.is_none() {
        voice.note(
            "the model has no chat template: it is asked as \"You are a helpful assistant. USER: … ASSISTANT:\"; \
             --template FILE gives its own",
        );
    }
}

/// The opened model and inputs, ready before the ranks start.
struct Prepared {
    sources: Vec<Source>,
    layout: Layout,
    plan: Plan,
    model: Model,
    /// How long opening the videos took, where frames were chosen by content.
    chosen: Option<Duration>,
}

fn prepare(
    args: &AskArgs,
    question: &str,
    videos: &[PathBuf],
    options: &AnswerOptions,
    ranks: &Ranks,
    voice: Voice,
    cancel: &Cancel,
) -> Result<Prepared> {
    let system = open::system_or_demo(args.model.as_deref(), voice, cancel)?;
    let mut files = ModelFiles::open_with(&system, choices(args))?;
    note_absent_template(&files, voice);
    prepare::choose_after_video(&mut files.spec, args.after_video.map(resolve::after_video))?;
    prepare::choose_time_instruction(&mut files.spec, args.time_instruction.map(resolve::is_on))?;
    let selection = resolve::selection(&args.sampling, usual_sampling(&system)?)?;
    let chooser = choosing::chooser(&args.sampling, Some(question), voice, cancel)?;
    let choosing = Instant::now();
    let mut sources = open::sources(videos, &selection, chooser.as_ref(), voice, cancel)?;
    let chosen = chooser.map(|_| choosing.elapsed());
    let budget = resolve::pixel_budget(&args.pixels);
    let shape = StepShape::of(&system, &files.spec, &budget)?;
    prepare::check_reels(&files, shape.as_ref(), &budget, &sources)?;
    let n_videos = sources.iter().map(Source::n_videos).sum();
    let end = args.frame_end.map(resolve::frame_end);
    let layout = Layout::of(&files, question, n_videos, end)?;
    let planned =
        |sources: &[Source]| planned(&files, &layout, shape.as_ref(), sources, options, ranks);
    let mut plan = planned(&sources)?;
    // The frames of a reel were chosen when it was made.
    let chooses = sources
        .iter()
        .any(|source| matches!(source, Source::Video { .. }));
    if chooses && let Some(fewer) = selection.fewer(&plan, n_videos) {
        let (given, fit) = (plan.frames, plan.frames_that_fit);
        voice.note(&format!(
            "the model's own rule gives {given} frames, of which {fit} fit its context: {fit} are taken"
        ));
        sources = open::sources(videos, &fewer, None, voice, cancel)?;
        plan = planned(&sources)?;
    }
    plan.check(resolve::frames_option(&sources), n_videos)?;
    let doubt = demo_model::doubt(plan.frames).filter(|_| args.model.is_none());
    doubt.iter().for_each(|doubt| voice.note(doubt));
    layout.check_times(&sources, files.spec.decoder.max_position_embeddings)?;
    let model = files.load_with(&budget)?;
    Ok(Prepared {
        sources,
        layout,
        plan,
        model,
        chosen,
    })
}

/// A question with the prompt that it is asked in.
struct Asking<'a> {
    args: &'a AskArgs,
    question: &'a str,
    model: &'a Model,
    link: Option<&'static str>,
    ranks_here: usize,
    plan: Plan,
    start: Instant,
    chosen: Option<Duration>,
    loaded: Duration,
    voice: Voice,
    cancel: &'a Cancel,
}

impl Asking<'_> {
    fn ask(
        &self,
        mut conversation: Conversation<'_>,
        layout: Layout,
        sources: Vec<Source>,
    ) -> Result<()> {
        let (args, voice) = (self.args, self.voice);
        let progress = Progress::default();
        progress.frames_expected.add(self.plan.frames);
        progress.tokens_expected.add(self.plan.prompt_tokens);
        let limit = self.plan.context_limit;
        let limit = limit.saturating_sub(args.max_new_tokens as u64);
        let viewing = Viewing {
            sources,
            layout,
            prompt_tokens_max: usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let bounds = QueueBounds::default();
        let view = || {
            stages::view(
                viewing,
                self.model.frames.as_ref(),
                &mut conversation,
                bounds,
                &progress,
                self.cancel,
            )
        };
        let video = voice.show(&progress, view)?;
        let asked = FirstAnswer {
            prompt: conversation.tokens().to_vec(),
            answer: first_answer(args, voice, &mut conversation, &progress, self.cancel)?,
            seconds: AskSeconds {
                choose: self.chosen.map(|time| time.as_secs_f64()),
                load: self.loaded.as_secs_f64(),
                decode: progress.decode_busy.get().as_secs_f64(),
                encode: progress.encode_busy.get().as_secs_f64(),
                prefill: progress.prefill_busy.get().as_secs_f64(),
                generate: progress.generate_busy.get().as_secs_f64(),
                total: self.start.elapsed().as_secs_f64(),
            },
        };
        for source in &video {
            voice.warn(&source.path, &source.warnings);
        }
        if !voice.json {
            finish_text(args, &asked.answer)?;
        }
        self.go_on(conversation, asked, &video)
    }

    /// Follow-up questions, then the JSON object; if a follow-up fails, the earlier answers are still printed.
    fn go_on(
        &self,
        mut conversation: Conversation<'_>,
        asked: FirstAnswer,
        video: &[SourceSeen],
    ) -> Result<()> {
        let (args, voice) = (self.args, self.voice);
        let mut follow_ups = Vec::new();
        let followed = if args.interactive {
            follow(
                args,
                voice,
                &mut conversation,
                self.model,
                &mut follow_ups,
                self.cancel,
            )
        } else {
            Ok(())
        };
        if voice.json {
            let error = followed.as_ref().err().map(ToString::to_string);
            let kv_bytes = conversation.kv_bytes() * self.ranks_here;
            let json = asked.into_json(args, self.model, video, kv_bytes, follow_ups, error);
            let ring = self.link.zip(conversation.traffic());
            let ring = ring.map(|(link, traffic)| RingJson { link, traffic });
            let question = self.question;
            voice.say(
                &AskJson {
                    question,
                    ring,
                    ..json
                },
                String::new,
            )?;
        }
        followed
    }
}

/// The first answer, with its prompt and timings.
struct FirstAnswer {
    prompt: Vec<Token>,
    answer: Answer,
    seconds: AskSeconds,
}

impl FirstAnswer {
    fn into_json<'a>(
        self,
        args: &AskArgs,
        model: &'a Model,
        video: &'a [SourceSeen],
        kv_bytes: usize,
        follow_ups: Vec<FollowUpJson>,
        error: Option<String>,
    ) -> AskJson<'a> {
        let ids = || self.prompt.iter().map(|t| t.id()).collect();
        let seen = |token: &Token| token.is_vision() || token.is_feature();
        let vision = || self.prompt.iter().map(seen).collect();
        AskJson {
            question: "",
            model: model.system.path().text().into_owned(),
            model_warnings: model.system.warnings(),
            template: model.template.as_ref().map(|template| template.name()),
            gguf_products: model.gguf_products,
            video,
            tokens: Tokens {
                prompt: self.prompt.len(),
                vision: self.prompt.iter().filter(|token| seen(token)).count(),
                context: model.spec.decoder.max_position_embeddings,
                generated: self.answer.ids.len(),
            },
            kv_bytes,
            ring: None,
            peak_memory_bytes: peak_memory_bytes(),
            prompt_ids: args.debug_ids.then(ids),
            prompt_vision_mask: args.debug_ids.then(vision),
            generated_ids: args.debug_ids.then(|| self.answer.ids.clone()),
            answer: self.answer.text,
            finish: self.answer.finish,
            seconds: self.seconds,
            follow_ups,
            error,
        }
    }
}

/// Decodes the answer, without a progress bar where the answer is streamed: they would overwrite each other.
fn first_answer(
    args: &AskArgs,
    voice: Voice,
    conversation: &mut Conversation<'_>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Answer> {
    let mut speak = speaker(args, voice);
    let mut answer = || conversation.answer(&mut speak, progress, cancel);
    if args.stream {
        return answer();
    }
    voice.show(progress, answer)
}

/// Splits the inputs: the last is the question, the others are videos.
fn split_inputs(args: &AskArgs) -> Result<(&str, Vec<PathBuf>)> {
    let (question, videos) = args
        .inputs
        .split_last()
        .ok_or_else(|| Error::new(Kind::Usage, "the question is missing"))?;
    if videos.is_empty() && Path::new(question).is_file() {
        let question = Path::new(question).shown();
        let message = format!("{question} is a file, expected a question after it");
        return Err(Error::new(Kind::Usage, message));
    }
    let question = question.to_str().ok_or_else(|| {
        let shown = Path::new(question).shown();
        let message = format!("the question `{shown}` is not UTF-8 text");
        Error::new(Kind::Usage, message)
    })?;
    if question.trim().is_empty() {
        return Err(Error::new(Kind::Usage, "the question is empty"));
    }
    Ok((question, videos.iter().map(PathBuf::from).collect()))
}

fn options(args: &AskArgs) -> Result<AnswerOptions> {
    resolve::within("--prefill-chunk", args.prefill_chunk, 1..=1 << 20)?;
    if args.max_new_tokens == 0 {
        return Err(Error::new(
            Kind::Usage,
            "--max-new-tokens is 0, expected at least 1",
        ));
    }
    Ok(AnswerOptions {
        max_new_tokens: args.max_new_tokens,
        draw: resolve::draw(&args.draw)?,
        stop: args.stop.clone(),
        prefill_chunk: args.prefill_chunk,
        kv_dtype: resolve::kv_dtype(args.kv_dtype),
        kv_limit_bytes: None,
    })
}

/// The plan for the question, whether or not it fits.
fn planned(
    model: &ModelFiles,
    layout: &Layout,
    shape: Option<&StepShape>,
    sources: &[Source],
    options: &AnswerOptions,
    ranks: &Ranks,
) -> Result<Plan> {
    let demand = Demand {
        max_new_tokens: options.max_new_tokens as u64,
        processes: ranks.place().1 as u64,
        ranks: ranks.count() as u64,
        prefill_chunk: options.prefill_chunk as u64,
        ..prepare::demand(model, layout, shape, sources, options.kv_dtype)?
    };
    let plan = Plan::new(&model.spec, demand, prepare::memory_of(ranks));
    prepare::with_frames_that_fit(plan, layout, shape, sources)
}

/// Prints the pieces of the answer as they are decoded, with `--stream`.
fn speaker(args: &AskArgs, voice: Voice) -> impl FnMut(&str) + use<> {
    let speak = args.stream && !voice.json;
    move |piece: &str| {
        if speak {
            // A closed stdout ends the display, not the run.
            let _ = write_stdout(piece, false);
        }
    }
}

fn finish_text(args: &AskArgs, answer: &Answer) -> Result<()> {
    if args.stream {
        write_stdout("", true)
    } else {
        write_stdout(&answer.text, true)
    }
}

/// Answers one follow-up question per line of stdin, until it ends.
fn follow(
    args: &AskArgs,
    voice: Voice,
    conversation: &mut Conversation<'_>,
    model: &Model,
    answers: &mut Vec<FollowUpJson>,
    cancel: &Cancel,
) -> Result<()> {
    let ask_again = || {
        if std::io::stdin().is_terminal() {
            let _ = write!(std::io::stderr(), "> ");
        }
    };
    ask_again();
    let questions = lines_of_stdin();
    while let Some(question) = next_line(&questions, cancel)? {
        if !question.trim().is_empty() {
            answers.push(follow_one(
                args,
                voice,
                conversation,
                model,
                question,
                cancel,
            )?);
        }
        ask_again();
    }
    Ok(())
}

/// Reads the lines of stdin on a thread of its own, because a blocked read cannot be interrupted.
fn lines_of_stdin() -> Receiver<std::io::Result<String>> {
    let (out, lines) = bounded(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if out.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// The next line, or `None` at the end of the input.
fn next_line(lines: &Receiver<std::io::Result<String>>, cancel: &Cancel) -> Result<Option<String>> {
    loop {
        cancel.check()?;
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => return Ok(Some(line?)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn follow_one(
    args: &AskArgs,
    voice: Voice,
    conversation: &mut Conversation<'_>,
    model: &Model,
    question: String,
    cancel: &Cancel,
) -> Result<FollowUpJson> {
    let start = Instant::now();
    let last = conversation.tokens().last().copied();
    let tokens = match &model.template {
        Some(template) => {
            let vision = model.spec.vision.as_ref();
            let in_parts = vision.is_some_and(|vision| vision.shown_as.is_none());
            vision_prompt::follow_up(&model.tokenizer, template, last, &question, in_parts)?
        }
        None => follow_up(&model.tokenizer, last, &question)?,
    };
    let context = conversation.tokens().len() + tokens.len() + args.max_new_tokens;
    let limit = model.spec.decoder.max_position_embeddings;
    if context > limit {
        return Err(Error::new(
            Kind::TooLarge,
            format!(
                "the conversation would take {context} tokens, the model's context is {limit} tokens"
            ),
        ));
    }
    conversation.say(&tokens);
    let answer = conversation.answer(&mut speaker(args, voice), &Progress::default(), cancel)?;
    if !voice.json {
        finish_text(args, &answer)?;
    }
    Ok(FollowUpJson {
        question,
        answer: answer.text,
        finish: answer.finish,
        prompt_tokens: tokens.len(),
        generated: answer.ids.len(),
        seconds: start.elapsed().as_secs_f64(),
        generated_ids: args.debug_ids.then_some(answer.ids),
    })
}
