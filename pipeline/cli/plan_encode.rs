//! `longreel plan` for an encoder without a decoder: what `encode` would take.

use longreel_models::{
    checkpoint::layout::vqgan_tensors,
    spec::{
        processor::{Medium, PictureSpec},
        system::{SystemKind, SystemSpec},
    },
};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{
        args::PlanArgs,
        choosing, open,
        output::Voice,
        plan_inputs::{PlannedModel, SourcePlan, available, expected_frames, source_plan},
        resolve,
    },
    encoder::content_of,
    error::{Error, Kind, Result},
    plan::{EncodePlan, MachineSpeed, bytes},
};

#[derive(Serialize)]
struct EncodePlanJson {
    kind: SystemKind,
    fits: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
    #[serde(flatten)]
    plan: EncodePlan,
    sources: Vec<SourcePlan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    predicted_seconds: Option<PredictedEncoding>,
}

#[derive(Serialize)]
struct PredictedEncoding {
    encode: f64,
    gflops_measured: f64,
}

/// Plans for the encoder `model`.
pub fn run(args: &PlanArgs, model: &PlannedModel, voice: Voice, cancel: &Cancel) -> Result<()> {
    check_options(args)?;
    let selection = resolve::selection(&args.sampling, model.usual_sampling()?)?;
    let chooser = choosing::chooser(&args.sampling, None, voice, cancel)?;
    let sources = open::sources(&args.videos, &selection, chooser.as_ref(), voice, cancel)?;
    let frames = expected_frames(args, &sources, &selection.sampling)?;
    let spec = model.spec();
    let plan = EncodePlan::new(
        spec,
        side_of(model)?,
        frames,
        content_of(spec)
            .ok_or_else(|| Error::new(Kind::Internal, "the model has no encoder to plan for"))?,
        weight_bytes(model)?,
        available(args)?,
    )?;
    let verdict = plan.check();
    let predicted_seconds = args.measure.then(|| predict(&plan)).transpose()?;
    let refusal = verdict.as_ref().err().map(|e| e.to_string());
    let json = EncodePlanJson {
        kind: spec.kind(),
        fits: refusal.is_none(),
        refusal,
        plan,
        sources: sources.iter().map(source_plan).collect(),
        predicted_seconds,
    };
    voice.say(&json, || text(&json))?;
    verdict
}

/// Refuses options that only models with a decoder have.
fn check_options(args: &PlanArgs) -> Result<()> {
    let given = [
        ("--decoder", args.decoder.is_some()),
        ("--time-instruction", args.time_instruction.is_some()),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((option, _)) => {
            let message =
                format!("{option} is for models that answer questions, the model is an encoder");
            Err(Error::new(Kind::Usage, message))
        }
    }
}

/// Side length of the encoder's input pictures, in pixels.
fn side_of(model: &PlannedModel) -> Result<usize> {
    let usual = match model.spec() {
        SystemSpec::DualEncoder(spec) => spec.vision.image_size,
        SystemSpec::Classifier(spec) => spec.image_size,
        // ResNet takes any size; 224 is that of its ImageNet training.
        SystemSpec::ConvNet(_) | SystemSpec::Answers(_) => 224,
        SystemSpec::Vqgan(spec) => spec.resolution,
    };
    let PlannedModel::System(system) = model else {
        return Ok(usual);
    };
    if system.kind() == SystemKind::Vqgan {
        return Ok(usual);
    }
    let processor = PictureSpec::of_folder(system.processor(), Medium::Picture)?;
    Ok(processor.shape().map_or(usual, |[height, _]| height))
}

/// Bytes of the weights, which encoders keep as f32.
fn weight_bytes(model: &PlannedModel) -> Result<u64> {
    if let PlannedModel::System(system) = model {
        let weights = system.weights()?;
        return Ok(weights
            .mapped_bytes()
            .saturating_add(weights.resident_bytes()));
    }
    let numbers = match model.spec() {
        SystemSpec::DualEncoder(spec) => spec.parameters(),
        SystemSpec::Classifier(spec) => spec.parameters(),
        SystemSpec::ConvNet(spec) => spec.parameters()?,
        SystemSpec::Vqgan(spec) => {
            let shapes = vqgan_tensors(spec);
            let numbers = shapes
                .iter()
                .map(|(_, shape)| shape.iter().product::<usize>());
            numbers.sum()
        }
        SystemSpec::Answers(_) => 0,
    };
    Ok(4 * numbers as u64)
}

fn predict(plan: &EncodePlan) -> Result<PredictedEncoding> {
    let speed = MachineSpeed::measure()?;
    Ok(PredictedEncoding {
        encode: plan.encode_flops / speed.flops,
        gflops_measured: speed.flops / 1e9,
    })
}

fn text(json: &EncodePlanJson) -> String {
    let p = &json.plan;
    let mut lines: Vec<String> = json.sources.iter().map(SourcePlan::line).collect();
    lines.extend([
        format!("frames     {}, each {}", p.frames, p.content),
        format!("reel       {}", bytes(p.reel_bytes)),
        format!("weights    {}", bytes(p.weight_bytes)),
        format!(
            "memory     {} needed, {} available",
            bytes(p.total_bytes),
            p.available_bytes.map_or("unknown".to_owned(), bytes)
        ),
        format!("operations {:.3e} encode", p.encode_flops),
    ]);
    if let Some(s) = &json.predicted_seconds {
        let (encode, speed) = (s.encode, s.gflops_measured);
        lines.push(format!(
            "predicted  {encode:.1} s encode (measured {speed:.0} GFLOP/s)"
        ));
    }
    lines.join("\n")
}
