//! The synthetic world: what its scripts say is what its videos show.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Stdio,
};

use expect_test::{Expect, expect};
use longreel::{
    cancel::Cancel,
    flow::{Frame, RgbImage},
    sources::{
        file::FrameReader,
        sampler::{Rate, Sampling, TimeRange},
    },
    stages::progress::Counter,
    synth::{
        clip::{ClipLine, Collection, read_questions, video_name},
        draw::{draw, whole_seconds},
        draws::Draws,
        questions::{Question, QuestionKind},
        recipe::{Clip, Recipe, Split},
        score::{is_exact, priors, scores},
        world::{Appearance, Colour, Script, Shape, World},
    },
    time::{Pts, TimeBase},
};
use sha2::{Digest, Sha256};

use crate::support::longreel::{Run, command, longreel};

/// Seven questions of each kind about clips of three objects, in which everything happens.
fn hardest() -> Recipe {
    Recipe {
        difficulty: 3,
        per_kind: 7,
        ..Recipe::default()
    }
}

fn needles() -> Recipe {
    Recipe {
        needle: true,
        per_kind: 3,
        ..Recipe::default()
    }
}

fn clips(recipe: &Recipe, n: u64) -> Vec<Clip> {
    (0..n).map(|index| recipe.clip(index).unwrap()).collect()
}

fn seconds(second: u32) -> Pts {
    Pts::new(i64::from(second), TimeBase { num: 1, den: 1 })
}

/// The clips of `recipe` as files.
fn written(recipe: Recipe, n: u64) -> (tempfile::TempDir, Vec<ClipLine>) {
    let dir = tempfile::tempdir().unwrap();
    let collection = Collection {
        clips: n,
        side: 96,
        fps: 8,
        recipe,
    };
    collection.open(dir.path(), false).unwrap();
    let made = collection.write(dir.path(), &Counter::default(), &Cancel::new());
    assert_eq!(made.unwrap().written, n);
    let lines = lines(dir.path());
    assert_eq!(lines.len() as u64, n);
    (dir, lines)
}

fn lines(dir: &Path) -> Vec<ClipLine> {
    let mut lines = Vec::new();
    read_questions(dir, &mut |line| {
        lines.push(line);
        Ok(())
    })
    .unwrap();
    lines
}

fn frames(path: &Path, sampling: Sampling) -> Vec<Frame> {
    let mut reader = FrameReader::open(path, &sampling, &TimeRange::ALL, Cancel::new()).unwrap();
    let next = || reader.next_frame().unwrap();
    std::iter::from_fn(next).collect()
}

fn one_a_second() -> Sampling {
    Sampling::Fps(Rate::new(1, 1).unwrap())
}

/// Mean distance of two pictures, levels of a channel.
fn distance(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.data.len(), b.data.len());
    let levels = a.data.iter().zip(&b.data);
    let sum: u64 = levels.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.data.len() as f64
}

#[test]
fn a_seed_and_a_number_are_one_clip_for_ever() {
    let mut seen = BTreeSet::new();
    for recipe in [Recipe::default(), hardest(), needles()] {
        for index in 0..20 {
            let [one, other] = [(); 2].map(|()| recipe.clip(index).unwrap());
            assert_eq!(one, other);
            let [one_drawn, other_drawn] =
                [&one, &other].map(|clip| whole_seconds(&clip.script, 48));
            assert_eq!(one_drawn, other_drawn);
            assert!(seen.insert(serde_json::to_string(&one.script).unwrap()));
        }
    }
    let of_another_seed = Recipe {
        seed: 1,
        ..Recipe::default()
    };
    assert_ne!(
        of_another_seed.clip(0).unwrap(),
        Recipe::default().clip(0).unwrap()
    );
}

#[test]
fn clips_do_not_change_from_one_version_to_the_next() {
    let mut digest = Sha256::new();
    for recipe in [hardest(), needles()] {
        for clip in clips(&recipe, 10) {
            digest.update(serde_json::to_string(&clip.script).unwrap());
            digest.update(serde_json::to_string(&clip.questions).unwrap());
            let pictures = whole_seconds(&clip.script, 96);
            pictures.iter().for_each(|p| digest.update(&p.data));
        }
    }
    let digest: String = digest
        .finalize()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    expect!["d39407882eedc2a924b70124bb3ea659ac81e1367e076a9ead6b2e08073e2fbd"].assert_eq(&digest);
}

#[test]
fn no_story_of_one_split_is_in_the_other() {
    let stories = |recipe: &Recipe, split, seed| -> BTreeSet<String> {
        let recipe = Recipe {
            split,
            seed,
            ..recipe.clone()
        };
        let of = |clip: Clip| {
            assert_eq!(Split::of(&clip.script), split);
            clip.script.story()
        };
        clips(&recipe, 1000).into_iter().map(of).collect()
    };
    // A clip of one second has so few stories that they come again and again.
    let short = Recipe {
        lengths: vec![1, 2],
        ..Recipe::default()
    };
    for recipe in [Recipe::default(), hardest(), needles(), short] {
        let train = stories(&recipe, Split::Train, 5);
        let test = stories(&recipe, Split::Test, 5);
        let same = train.intersection(&test);
        assert_eq!(same.collect::<Vec<_>>(), Vec::<&String>::new());
        assert!(!train.is_empty() && !test.is_empty());
    }
}

#[test]
fn one_story_of_eight_is_for_testing() {
    let world = World::Shots { n_objects_max: 2 };
    let is_test = |seed: &u64| {
        let script = world.script(16, 0, &mut Draws::new(&[*seed]));
        Split::of(&script) == Split::Test
    };
    let n = (0..8000).filter(is_test).count();
    assert!((900..1100).contains(&n), "{n} of 8000");
}

#[test]
fn positions_do_not_change_the_story() {
    let script = Recipe::default().clip(0).unwrap().script;
    let mut moved = script.clone();
    moved.shots[0].objects[0].from[0] += 1;
    moved.shots[0].objects[0].size -= 1;
    assert_eq!(moved.story(), script.story());
    let mut shorter = script.clone();
    shorter.shots.pop();
    assert_ne!(shorter.story(), script.story());
}

#[test]
fn objects_are_whole_and_do_not_overlap() {
    for clip in clips(&hardest(), 300) {
        clip.script.check().unwrap();
        for shot in &clip.script.shots {
            for eighth in shot.from * 8..shot.to * 8 {
                let at = Pts::new(i64::from(eighth), TimeBase { num: 1, den: 8 });
                let boxes = shot.objects.iter().map(|object| {
                    let half = f64::from(object.size) / 2000.0;
                    shot.centre(object, at).map(|c| (c - half, c + half))
                });
                assert_apart(&boxes.collect::<Vec<_>>());
            }
        }
    }
}

#[track_caller]
fn assert_apart(boxes: &[[(f64, f64); 2]]) {
    for (i, a) in boxes.iter().enumerate() {
        let is_inside = a.iter().all(|(from, to)| *from > 0.0 && *to < 1.0);
        assert!(is_inside, "{a:?} is not in the frame");
        for b in &boxes[..i] {
            let apart = a.iter().zip(b).any(|(a, b)| a.1 < b.0 || b.1 < a.0);
            assert!(apart, "{a:?} covers {b:?}");
        }
    }
}

#[test]
fn an_event_begins_with_the_frame_of_its_second() {
    let (dir, lines) = written(hardest(), 6);
    for line in &lines {
        let path = dir.path().join(&line.video);
        let all = frames(&path, Sampling::Every);
        assert_eq!(all.len() as u32, line.seconds * line.fps);
        let taken = frames(&path, one_a_second());
        assert_eq!(taken.len() as u32, line.seconds);
        for (frame, second) in taken.iter().zip(0..) {
            assert_eq!(frame.time.pts, seconds(second));
            assert_eq!(frame.image, all[second as usize * 8].image);
        }
        for shot in &line.script.shots[1..] {
            let number = shot.from as usize * 8;
            let [before, begins] = [number - 1, number].map(|n| &all[n]);
            let drawn = |frame: &Frame| draw(&line.script, frame.time.pts, 96);
            for (own, other) in [(begins, before), (before, begins)] {
                let (near, far) = (
                    distance(&own.image, &drawn(own)),
                    distance(&own.image, &drawn(other)),
                );
                assert!(3.0 * near < far, "{}: {near} {far}", line.video);
            }
        }
    }
}

#[test]
fn a_file_differs_from_the_drawn_pictures_by_compression_only() {
    let noisy = Recipe {
        noise: 12,
        ..hardest()
    };
    for (recipe, mean_max, each_max) in [
        (hardest(), 2.0, 3.0),
        (needles(), 1.5, 2.5),
        (noisy, 7.0, 8.0),
    ] {
        let (dir, lines) = written(recipe, 8);
        let distances: Vec<f64> = lines.iter().flat_map(|l| losses(dir.path(), l)).collect();
        let mean = distances.iter().sum::<f64>() / distances.len() as f64;
        let worst = distances.into_iter().fold(0.0, f64::max);
        println!("mean distance {mean:.3}, of the worst picture {worst:.3} levels");
        assert!(mean < mean_max && worst < each_max, "{mean} {worst}");
    }
}

/// How far the picture of each second is from the drawn one.
fn losses(dir: &Path, line: &ClipLine) -> Vec<f64> {
    let taken = frames(&dir.join(&line.video), one_a_second());
    let drawn = whole_seconds(&line.script, 96);
    let pairs = taken.iter().zip(&drawn);
    pairs
        .map(|(frame, drawn)| distance(&frame.image, drawn))
        .collect()
}

#[test]
fn noise_depends_on_the_time_and_not_on_the_frame_rate() {
    let noisy = Recipe {
        noise: 9,
        ..Recipe::default()
    };
    let script = noisy.clip(0).unwrap().script;
    let clean = Script {
        noise: None,
        ..script.clone()
    };
    let at = |ticks, den| draw(&script, Pts::new(ticks, TimeBase { num: 1, den }), 32);
    assert_eq!(at(3, 1), at(24, 8));
    assert_ne!(at(3, 1), at(4, 1));
    let levels = at(3, 1)
        .data
        .into_iter()
        .zip(draw(&clean, seconds(3), 32).data);
    let shifts: BTreeSet<u8> = levels.map(|(a, b)| a.abs_diff(b)).collect();
    assert_eq!(shifts, (0..=9).collect());
}

/// A patch of one colour in a picture.
#[derive(Debug, Clone)]
struct Patch {
    look: Appearance,
    centre: [f64; 2],
}

/// What stands out of dark and grey: strong colours and white.
fn stands_out(pixel: &[u8]) -> bool {
    let (least, most) = (pixel.iter().min().unwrap(), pixel.iter().max().unwrap());
    most - least > 80 || *least > 190
}

/// The objects of a picture, from its pixels alone.
fn patches(image: &RgbImage) -> Vec<Patch> {
    let mut left: BTreeSet<(usize, usize)> = (0..image.height)
        .flat_map(|y| (0..image.width).map(move |x| (x, y)))
        .filter(|&(x, y)| stands_out(pixel(image, x, y)))
        .collect();
    let mut patches = Vec::new();
    while let Some(start) = left.pop_first() {
        let mut patch = vec![start];
        let mut next = 0;
        while let Some(&(x, y)) = patch.get(next) {
            next += 1;
            for near in [
                (x + 1, y),
                (x.wrapping_sub(1), y),
                (x, y + 1),
                (x, y.wrapping_sub(1)),
            ] {
                patch.extend(left.take(&near));
            }
        }
        // What compression leaves beside an edge is no object.
        if patch.len() > 60 {
            patches.push(patch_of(image, &patch));
        }
    }
    patches
}

fn pixel(image: &RgbImage, x: usize, y: usize) -> &[u8] {
    &image.data[(y * image.width + x) * 3..][..3]
}

/// Colour is stored at half the resolution and bleeds: what differs from the patch's own is no part of it.
fn patch_of(image: &RgbImage, touched: &[(usize, usize)]) -> Patch {
    let own = median(image, touched);
    let is_own = |&&(x, y): &&(usize, usize)| {
        let channels = pixel(image, x, y).iter().zip(own);
        channels.into_iter().all(|(a, b)| a.abs_diff(b) < 80)
    };
    let pixels: Vec<(usize, usize)> = touched.iter().filter(is_own).copied().collect();
    let n = pixels.len() as f64;
    let side = |of: fn(&(usize, usize)) -> usize| {
        let values = || pixels.iter().map(of);
        let (from, to) = (values().min().unwrap(), values().max().unwrap() + 1);
        let mean = values().map(|v| v as f64 + 0.5).sum::<f64>() / n;
        (from as f64, to as f64, mean)
    };
    let ((left, right, _), (top, bottom, mean_y)) = (side(|p| p.0), side(|p| p.1));
    let [x, y] = [(left + right) / 2.0, (top + bottom) / 2.0];
    let fill = n / ((right - left) * (bottom - top));
    let is_hollow = !pixels.contains(&(x as usize, y as usize));
    let sinks = (mean_y - y) / (bottom - top);
    let shape = match fill {
        _ if is_hollow => Shape::Ring,
        _ if fill > 0.9 => Shape::Square,
        _ if fill > 0.7 => Shape::Circle,
        _ if sinks > 0.1 => Shape::Triangle,
        _ if fill > 0.45 => Shape::Cross,
        _ => Shape::Star,
    };
    let colour = nearest_colour(own);
    Patch {
        look: Appearance { colour, shape },
        centre: [x, y],
    }
}

/// The median of each channel.
fn median(image: &RgbImage, pixels: &[(usize, usize)]) -> [u8; 3] {
    [0, 1, 2].map(|channel| {
        let levels = pixels.iter().map(|&(x, y)| pixel(image, x, y)[channel]);
        let mut levels: Vec<u8> = levels.collect();
        levels.sort_unstable();
        levels[levels.len() / 2]
    })
}

fn nearest_colour(rgb: [u8; 3]) -> Colour {
    let distance = |colour: &&Colour| {
        let channels = colour.rgb().into_iter().zip(rgb);
        channels
            .map(|(a, b)| u32::from(a.abs_diff(b)).pow(2))
            .sum::<u32>()
    };
    *Colour::ALL.iter().min_by_key(distance).unwrap()
}

/// What is seen at each whole second of a video.
struct Watched(Vec<Vec<Patch>>);

impl Watched {
    fn video(path: &Path) -> Self {
        let frames = frames(path, one_a_second());
        Self(frames.iter().map(|f| patches(&f.image)).collect())
    }

    /// Answers from what is seen and the words of the question.
    fn answer(&self, question: &Question) -> String {
        let words: Vec<&str> = question.question.split([' ', '?', ',']).collect();
        let at: Option<usize> = words.iter().find_map(|w| w.parse().ok());
        let colours = Colour::ALL.iter().filter(|c| words.contains(&c.word()));
        let shapes = Shape::ALL.iter().filter(|s| words.contains(&s.word()));
        let (colour, shape) = (colours.copied().next(), shapes.copied().next());
        let is_meant = |patch: &&Patch| {
            colour.is_none_or(|c| c == patch.look.colour)
                && shape.is_none_or(|s| s == patch.look.shape)
        };
        let seconds = match at {
            Some(at) => &self.0[at..=at],
            None => &self.0[..],
        };
        let meant = || seconds.iter().flatten().filter(is_meant);
        let one = || meant().next().unwrap();
        let is_seen = |second: &Vec<Patch>| second.iter().any(|p| is_meant(&p));
        match question.form().as_str() {
            form if form.starts_with("What is shown first") => self.first_of(&words),
            form if form.starts_with("What comes right after") => {
                let last = self.0.iter().rposition(is_seen).unwrap();
                self.0[last + 1][0].look.with_article()
            }
            form if form.starts_with("What shape") => one().look.shape.word().to_owned(),
            form if form.starts_with("What colour") => one().look.colour.word().to_owned(),
            form if form.starts_with("Which way") => {
                direction(one().centre, meant().next_back().unwrap().centre)
            }
            form if form.starts_with("How many") => seconds[0].len().to_string(),
            "What happens?" => self.story(),
            form if form.ends_with("appear?") => {
                self.0.iter().position(is_seen).unwrap().to_string()
            }
            _ => one().look.with_article(),
        }
    }

    /// Of a video with one object at a time, whose shots differ by their objects.
    fn story(&self) -> String {
        let mut from = 0;
        let shots = self.0.chunk_by(|a, b| a[0].look == b[0].look);
        let told = shots.map(|shot| {
            let (first, last) = (&shot[0][0], &shot[shot.len() - 1][0]);
            let goes = direction(first.centre, last.centre);
            let told = format!("{from}: {}, {goes}", first.look.name());
            from += shot.len();
            told
        });
        told.collect::<Vec<_>>().join("; ")
    }

    /// The look of a list of words that is seen before any other of it.
    fn first_of(&self, words: &[&str]) -> String {
        let is_named = |look: &Appearance| {
            let named = |pair: &[&str]| pair == [look.colour.word(), look.shape.word()];
            words.windows(2).any(named)
        };
        let mut seen = self.0.iter().flatten().map(|p| p.look);
        format!("the {}", seen.find(is_named).unwrap().name())
    }
}

fn direction([x, y]: [f64; 2], [to_x, to_y]: [f64; 2]) -> String {
    let (dx, dy) = (to_x - x, to_y - y);
    let word = match dx.abs().max(dy.abs()) {
        moved if moved < 4.0 => "it stands still",
        _ if dx.abs() > dy.abs() && dx > 0.0 => "right",
        _ if dx.abs() > dy.abs() => "left",
        _ if dy > 0.0 => "down",
        _ => "up",
    };
    word.to_owned()
}

#[test]
fn every_answer_can_be_read_off_the_decoded_video() {
    let mut asked: BTreeMap<QuestionKind, usize> = BTreeMap::new();
    let stories = Recipe {
        kinds: vec![QuestionKind::Story],
        lengths: vec![5, 9],
        ..Recipe::default()
    };
    for (recipe, n) in [
        (Recipe::default(), 6),
        (hardest(), 12),
        (needles(), 6),
        (stories, 15),
    ] {
        let (dir, lines) = written(recipe, n);
        for line in &lines {
            let watched = Watched::video(&dir.path().join(&line.video));
            for question in &line.questions {
                let seen = watched.answer(question);
                let which = (&line.video, &question.question);
                assert_eq!(question.answer, seen, "{which:?}: {:?}", watched.0);
                *asked.entry(question.kind).or_default() += 1;
            }
        }
    }
    for kind in QuestionKind::ALL {
        assert!(asked[kind] >= 15, "{kind:?}: {}", asked[kind]);
    }
}

#[test]
fn the_time_of_an_answer_is_when_its_objects_are_shown() {
    for clip in clips(&hardest(), 100) {
        for question in &clip.questions {
            let [from, to] = question.time;
            let begins = |shot: &&longreel::synth::world::Shot| shot.from == from;
            let ends = |shot: &&longreel::synth::world::Shot| shot.to == to;
            let (first, last) = (
                clip.script.shots.iter().find(begins).unwrap(),
                clip.script.shots.iter().find(ends).unwrap(),
            );
            let is_named = |look: Appearance| question.question.contains(&look.name());
            let named = clip
                .script
                .shots
                .iter()
                .filter(|shot| shot.objects.iter().any(|object| is_named(object.look)));
            for shot in named {
                assert!(
                    first.from <= shot.from && shot.to <= last.to,
                    "{question:?}"
                );
            }
        }
    }
}

/// Clips enough for an answer of one in six to be within a few percent.
const N_BALANCE: u64 = 2500;

#[test]
fn answers_are_balanced_within_each_form_of_question() {
    let easy = |difficulty| Recipe {
        difficulty,
        ..hardest()
    };
    for recipe in [easy(1), easy(2), easy(3), needles()] {
        let questions: Vec<Question> = clips(&recipe, N_BALANCE)
            .into_iter()
            .flat_map(|clip| clip.questions)
            .collect();
        let forms: Vec<String> = questions.iter().map(Question::form).collect();
        let pairs = forms.iter().zip(&questions);
        let priors = priors(pairs.map(|(form, q)| (form.as_str(), q.answer.as_str())));
        assert!(priors.len() >= 3);
        for (form, prior) in priors {
            let most = largest_share(&form, recipe.difficulty);
            let share = prior.score.share();
            println!("{} {form} {share:.3} {}", recipe.difficulty, prior.answer);
            assert!(share < most, "{form} {prior:?}: {share}, expected {most}");
        }
    }
}

/// The largest share that an answer may have among all of one form: a choice of 6, 8, 5, 3, 16 or 48.
fn largest_share(form: &str, difficulty: u8) -> f64 {
    let shares = [
        ("What shape", 0.2),
        ("What colour", 0.16),
        ("Which way", 0.23),
        ("How many", 1.0 / f64::from(difficulty) + 0.02),
        ("At what second", 0.1),
        ("When", 0.1),
        ("", 0.04),
    ];
    let of_form = shares.iter().find(|(begin, _)| form.starts_with(begin));
    of_form.unwrap().1
}

#[test]
fn the_first_named_of_two_objects_comes_first_half_the_time() {
    let questions = clips(&hardest(), N_BALANCE)
        .into_iter()
        .flat_map(|clip| clip.questions);
    let of_two = questions.filter(|q| q.question.starts_with("What is shown first"));
    let is_first = |q: Question| q.question.contains(&format!("first, {} or", q.answer));
    let firsts: Vec<bool> = of_two.map(is_first).collect();
    let share = firsts.iter().filter(|f| **f).count() as f64 / firsts.len() as f64;
    assert!((share - 0.5).abs() < 0.02, "{share} of {}", firsts.len());
}

#[test]
fn a_needle_lies_where_it_was_asked_for() {
    let recipe = Recipe {
        depths: vec![0, 50, 100],
        lengths: vec![11, 101],
        ..needles()
    };
    let found: Vec<(u32, u32)> = clips(&recipe, 8)
        .into_iter()
        .map(|clip| {
            let shown = clip.script.shots.iter().filter(|s| !s.objects.is_empty());
            let at: Vec<u32> = shown.map(|shot| shot.from).collect();
            assert_eq!(at.len(), 1);
            (clip.script.seconds, at[0])
        })
        .collect();
    let expected = [
        (11, 0),
        (101, 0),
        (11, 5),
        (101, 50),
        (11, 10),
        (101, 100),
        (11, 0),
        (101, 0),
    ];
    assert_eq!(found, expected);
}

#[test]
fn answers_are_compared_without_case_blanks_and_a_full_stop() {
    for (said, expected, same) in [
        ("a red circle", "a red circle", true),
        (" A Red Circle. ", "a red circle", true),
        ("red circle", "a red circle", false),
        ("7.", "7", true),
        ("7.5", "7", false),
        ("a red circle..", "a red circle", false),
        ("", "a red circle", false),
    ] {
        assert_eq!(is_exact(said, expected), same, "{said:?} {expected:?}");
    }
}

#[test]
fn scores_and_priors_are_counted_by_kind() {
    let scores = scores([
        ("shape", "Star.", "star"),
        ("shape", "ring", "star"),
        ("when", "3", "3"),
    ]);
    let counted = scores
        .iter()
        .map(|(kind, s)| (kind.as_str(), s.right, s.asked));
    assert_eq!(
        counted.collect::<Vec<_>>(),
        [("shape", 1, 2), ("when", 1, 1)]
    );
    assert_eq!(scores["shape"].share(), 0.5);
    let priors = priors([
        ("shape", "star"),
        ("shape", "ring"),
        ("shape", "ring"),
        ("when", "3"),
        ("when", "10"),
    ]);
    assert_eq!(priors["shape"].answer, "ring");
    assert_eq!(priors["shape"].score.right, 2);
    // Of two that are equally frequent the first by letters.
    assert_eq!(priors["when"].answer, "10");
}

fn synth(out: &Path, more: &[&str]) -> Run {
    let out = out.display().to_string();
    let small = [
        "synth", "--out", &out, "--side", "32", "--fps", "2", "--length", "3",
    ];
    longreel(&[&small, more].concat())
}

#[test]
fn clips_that_are_there_are_kept_and_the_others_made() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("world");
    let first = synth(&out, &["--clips", "4", "--json"]).json();
    assert_eq!((&first["written"], &first["kept"]), (&4.into(), &0.into()));
    let read = |name: &str| std::fs::read(out.join(name)).unwrap();
    let (list, clip) = (read("questions.jsonl"), read(&video_name(2)));
    std::fs::remove_file(out.join(video_name(2))).unwrap();
    std::fs::write(out.join(video_name(3)), "").unwrap();
    let second = synth(&out, &["--clips", "4", "--json"]).json();
    assert_eq!(
        (&second["written"], &second["kept"]),
        (&2.into(), &2.into())
    );
    assert_eq!(read("questions.jsonl"), list);
    assert_eq!(read(&video_name(2)), clip);
    let more = synth(&out, &["--clips", "6", "--json"]).json();
    assert_eq!((&more["written"], &more["kept"]), (&2.into(), &4.into()));
    assert!(read("questions.jsonl").starts_with(&list));
}

#[test]
fn a_directory_of_another_recipe_needs_force() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("world");
    synth(&out, &["--clips", "3", "--json"]).json();
    let others: [(&[&str], &str); 3] = [
        (
            &["--clips", "3", "--seed", "1"],
            "holds clips made with other options",
        ),
        (&["--clips", "2"], "holds 3 clips, more than --clips"),
        (&["--clips", "3", "--split", "test"], "--force replaces it"),
    ];
    for (options, sentence) in others {
        synth(&out, options).refused(2, sentence);
    }
    std::fs::write(out.join("clips/mine.mp4"), "mine").unwrap();
    synth(&out, &["--clips", "1", "--seed", "1", "--force", "--json"]).json();
    let mut names: Vec<_> = std::fs::read_dir(out.join("clips"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["000000.mp4", "mine.mp4"]);
    std::fs::remove_file(out.join("synth.json")).unwrap();
    synth(&out, &["--clips", "1"]).refused(2, "no synth.json");
    std::fs::write(out.join("synth.json"), "{}").unwrap();
    synth(&out, &["--clips", "1"]).refused(2, "did not write");
}

#[test]
fn impossible_collections_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("world");
    let path = out.display().to_string();
    let cases: [(&[&str], &str); 14] = [
        (&["--clips", "0"], "--clips is 0, expected 1 to 10000000"),
        (
            &["--side", "95"],
            "--side is 95, expected an even number from 16 to 4096",
        ),
        (&["--side", "2"], "--side is 2, expected an even number"),
        (&["--fps", "0"], "--fps is 0, expected 1 to 60"),
        (&["--length", "16,0"], "--length is 0, expected 1 to 36000"),
        (&["--difficulty", "4"], "--difficulty is 4, expected 1 to 3"),
        (&["--noise", "200"], "--noise is 200, expected 0 to 64"),
        (&["--per-kind", "0"], "--per-kind is 0, expected 1 to 100"),
        (&["--depth", "50"], "expected --needle with it"),
        (
            &["--needle", "--depth", "101"],
            "--depth is 101, expected 0 to 100",
        ),
        (
            &["--kinds", "needle"],
            "--kinds has needle, these clips can be asked for shape",
        ),
        (&["--kinds", "count"], "--kinds has count"),
        (&["--needle", "--kinds", "shape"], "can be asked for needle"),
        (&["--kinds", "taste"], "[possible values: shape"),
    ];
    for (options, sentence) in cases {
        longreel(&[&["synth", "--out", &path], options].concat()).refused(2, sentence);
        assert!(!out.exists(), "{options:?} wrote something");
    }
    std::fs::write(&out, "a file").unwrap();
    let beside_a_file = longreel(&["synth", "--out", &path, "--clips", "1"]);
    beside_a_file.refused(2, "a file stands where a directory was expected");
}

#[test]
fn a_stopped_run_leaves_whole_clips_and_goes_on() {
    for (signal, code) in [("-INT", 130), ("-TERM", 75)] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("world");
        let child = command()
            .args([
                "synth", "--clips", "100000", "--side", "64", "--quiet", "--out",
            ])
            .arg(&out)
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        for _ in 0..600 {
            if out.join(video_name(0)).exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let kill = std::process::Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(!out.join("questions.jsonl").exists());
        for entry in std::fs::read_dir(out.join("clips")).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(frames(&path, one_a_second()).len(), 16, "{path:?}");
        }
    }
}

#[test]
fn lists_of_questions_from_elsewhere_are_checked() {
    let clip = Recipe::default().clip(0).unwrap();
    let line = |script: Script| ClipLine {
        video: video_name(0),
        seconds: 16,
        fps: 8,
        seed: clip.seed,
        split: Split::Train,
        script,
        questions: clip.questions.clone(),
    };
    let changed = |change: fn(&mut Script)| {
        let mut script = clip.script.clone();
        change(&mut script);
        serde_json::to_string(&line(script)).unwrap()
    };
    let good = changed(|_| ());
    let cases = [
        (
            changed(|s| s.shots.clear()),
            "the shots end at 0 s, the clip at 16 s",
        ),
        (changed(|s| s.seconds = 17), "the clip at 17 s"),
        (
            changed(|s| s.shots[0].to = 0),
            "a shot goes from 0 s to 0 s",
        ),
        (
            changed(|s| s.shots[0].objects[0].size = 0),
            "the shot at 0 s has an object outside",
        ),
        (
            changed(|s| s.shots[0].objects[0].from[0] = i32::MAX),
            "outside the frame",
        ),
        (
            good.replace("\"seconds\"", "\"hours\""),
            "unknown field `hours`",
        ),
        ("{}".to_owned(), "missing field"),
        (
            good[..good.len() / 2].to_owned(),
            "not a clip with questions",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (bad, sentence) in cases {
        std::fs::write(
            dir.path().join("questions.jsonl"),
            format!("{good}\n{bad}\n"),
        )
        .unwrap();
        let mut n = 0;
        let error = read_questions(dir.path(), &mut |_| {
            n += 1;
            Ok(())
        })
        .unwrap_err()
        .to_string();
        assert_eq!(n, 1);
        let is_named = error.contains("questions.jsonl, line 2: ");
        assert!(is_named && error.contains(sentence), "{sentence}: {error}");
    }
}

#[test]
fn the_help_of_synth_tells_what_is_written() {
    let check = |expected: Expect| expected.assert_eq(&longreel(&["synth", "-h"]).stdout);
    check(expect![[r#"
        Render clips of a synthetic world, with questions and exact answers

        Usage: longreel synth [OPTIONS] --out <DIR>

        Options:
              --clips <N>         Number of clips [default: 100]
              --out <DIR>         The directory to write
              --seed <N>          The same seed gives the same clips [default: 0]
              --split <SPLIT>     The split: for training or for evaluation [default: train] [possible
                                  values: train, test]
              --length <SECONDS>  Seconds of a clip; with several values, clips take them in turn [default:
                                  16] [alias: --seconds]
              --difficulty <N>    Largest number of objects at a time: 1 to 3 [default: 1]
              --needle            Needle clips: one coloured object for one second among drifting grey blobs
              --depth <PERCENT>   Depth of the needle, in percent of the clip; with several values, each is
                                  used with every length
              --noise <LEVELS>    Amplitude of the noise of every pixel, in levels of 255 [default: 0]
              --plain             Black backgrounds only
              --kinds <KIND>      Only questions of these kinds; `story` (everything that happens, in one
                                  answer) is asked only if it is named [possible values: shape, colour,
                                  motion, count, order, when, what_at, needle, story]
              --per-kind <N>      Questions of each kind per clip [default: 1]
              --side <PIXELS>     Width and height, in pixels [default: 96]
              --fps <N>           Frames per second, a whole number [default: 8]
              --json              Print one JSON object on stdout and nothing else there
              --force             Replace clips that other options made
          -q, --quiet             No progress on stderr
              --threads <N>       Threads for encoding and answering; all cores when absent
          -h, --help              Print help (see more with '--help')
          -V, --version           Print version

        Writes OUT/clips/000000.mp4 and so on, OUT/questions.jsonl (one line a clip: what happens when,
        questions, answers, and where each is to be seen), and OUT/synth.json. The same options give
        the same clips, and go on where they were stopped. No story of one split is in the other.

        Examples:
          longreel synth --clips 100 --out world/
          longreel synth --clips 50 --split test --difficulty 3 --out exam/ --json
          longreel synth --clips 30 --needle --length 60,600 --depth 0,50,100 --split test --out hay/
    "#]]);
}
