//! `--sampler` and its options, resolved to a chooser of frames.

use longreel_models::file_name::FileName;

use crate::{
    cancel::Cancel,
    chooser::{Changes, Chooser, Query, Vectors},
    cli::{
        args::{ChoosingArgs, SamplerArg, SamplingArgs},
        open,
        output::Voice,
        search::model_of_reel,
    },
    error::{Context, Error, Kind, Result},
    reel::ReelReader,
    sources::{change::USUAL_THRESHOLD, sampler::parse_time},
    time::Pts,
    vectors::VectorModel,
};

/// The chooser that selects frames by content; `None` without `--sampler`.
///
/// `question` is the query unless `--query` gives another.
///
/// # Errors
/// `Usage` for options that exclude each other, and errors of opening the query's model.
pub fn chooser(
    args: &SamplingArgs,
    question: Option<&str>,
    voice: Voice,
    cancel: &Cancel,
) -> Result<Option<Chooser>> {
    let choosing = &args.choosing;
    let Some(sampler) = choosing.sampler else {
        return Ok(None);
    };
    check_options(choosing, sampler)?;
    Ok(Some(match sampler {
        SamplerArg::Change => Chooser::Change(changes(args)?),
        SamplerArg::Query => Chooser::Query(query(args, question, voice, cancel)?),
    }))
}

/// Refuses options of the other sampler.
fn check_options(args: &ChoosingArgs, sampler: SamplerArg) -> Result<()> {
    let (change, query) = (SamplerArg::Change, SamplerArg::Query);
    let given = [
        (
            "--change-threshold",
            change,
            args.change_threshold.is_some(),
        ),
        ("--max-gap", change, args.max_gap.is_some()),
        ("--query-model", query, args.query_model.is_some()),
        ("--query", query, args.query.is_some()),
        ("--query-reel", query, args.query_reel.is_some()),
        ("--min-gap", query, args.min_gap.is_some()),
    ];
    let mut strange = given
        .iter()
        .filter(|(_, of, is_given)| *is_given && *of != sampler);
    let Some((option, of, _)) = strange.next() else {
        return Ok(());
    };
    let name = if *of == change { "change" } else { "query" };
    Err(usage(format!(
        "{option} is for --sampler {name}, which was not given"
    )))
}

fn changes(args: &SamplingArgs) -> Result<Changes> {
    let choosing = &args.choosing;
    let threshold = choosing.change_threshold.unwrap_or(USUAL_THRESHOLD);
    if !(0.0..=1.0).contains(&threshold) {
        return Err(usage(format!(
            "--change-threshold is {threshold}, expected 0 to 1"
        )));
    }
    let max_gap = gap("--max-gap", choosing.max_gap.as_deref())?;
    if max_gap.is_some_and(|gap| gap.ticks == 0) {
        return Err(usage("--max-gap is 0, expected more than 0 seconds".into()));
    }
    if max_gap.is_some() && args.frames.is_some() {
        let message = "--max-gap cannot be used with --frames: it decides how many frames are kept";
        return Err(usage(message.into()));
    }
    Ok(Changes {
        threshold,
        max_gap,
        most: args.frames,
    })
}

fn query(
    args: &SamplingArgs,
    question: Option<&str>,
    voice: Voice,
    cancel: &Cancel,
) -> Result<Query> {
    let choosing = &args.choosing;
    let expected = |what: &str| usage(format!("--sampler query was given, expected {what}"));
    let n = args
        .frames
        .ok_or_else(|| expected("--frames with the number to keep"))?;
    let text = choosing.query.as_deref().or(question);
    let text = text.ok_or_else(|| expected("--query with a description of the frames"))?;
    let min_gap = gap("--min-gap", choosing.min_gap.as_deref())?;
    let model = model(choosing, voice, cancel)?
        .ok_or_else(|| expected("--query-model (or --query-reel), with CLIP or SigLIP"))?;
    let vector = model
        .of_text(text)
        .doing(|| format!("encode the query {text:?}"))?;
    Ok(Query {
        text: text.to_owned(),
        vector,
        vectors: match &choosing.query_reel {
            Some(reel) => Vectors::Reel(reel.clone()),
            None => Vectors::Model(Box::new(model)),
        },
        n,
        min_gap,
    })
}

/// The model that encodes the query: the one given, else the one that made the reel.
fn model(args: &ChoosingArgs, voice: Voice, cancel: &Cancel) -> Result<Option<VectorModel>> {
    let name = args.query_model.as_deref();
    match (&args.query_reel, name) {
        (Some(path), _) => {
            let reel = ReelReader::open(path)?;
            let doing = || format!("take vectors from the reel {}", path.shown());
            reel.header().vectors().doing(doing)?;
            model_of_reel(name, "--query-model", reel.header(), voice, cancel).map(Some)
        }
        (None, Some(name)) => {
            let system = open::system(name, voice, cancel)?;
            VectorModel::of_texts(&system).map(Some)
        }
        (None, None) => Ok(None),
    }
}

/// The time given for `option`, 0 or more.
fn gap(option: &'static str, text: Option<&str>) -> Result<Option<Pts>> {
    let Some(text) = text else {
        return Ok(None);
    };
    let gap = parse_time(text).doing(|| option)?;
    if gap.ticks >= 0 {
        return Ok(Some(gap));
    }
    Err(usage(format!(
        "{option} is {text}, expected 0 or more seconds"
    )))
}

fn usage(message: String) -> Error {
    Error::new(Kind::Usage, message)
}
