//! Which frames are taken: LWM's numbers to the bit, ticks and times exactly.

use longreel::{
    error::Kind,
    sources::sampler::{
        Rate, Sampling, TimeRange, parse_rate, parse_time, select, uniform_indices,
    },
    time::{Pts, TimeBase},
};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::support::golden;

fn base(den: u32) -> TimeBase {
    TimeBase::new(1, den).unwrap()
}

fn take(sampling: Sampling, ticks: &[i64], time_base: TimeBase) -> Vec<usize> {
    select(&sampling, &TimeRange::ALL, ticks, time_base).unwrap()
}

fn fps(text: &str, ticks: &[i64], time_base: TimeBase) -> Vec<usize> {
    take(Sampling::Fps(parse_rate(text).unwrap()), ticks, time_base)
}

#[test]
fn uniform_numbers_are_those_of_lwm_in_every_golden_case() {
    let text = std::fs::read_to_string(golden::path("frames/frame_indices.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= 25);
    for case in cases {
        let [n_frames, n] =
            ["duration", "max_n_frames"].map(|key| case[key].as_u64().unwrap() as usize);
        let ids = uniform_indices(n_frames, n);
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| (id as i64).to_le_bytes())
            .collect();
        let sha: String = Sha256::digest(&bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(
            sha,
            case["sha256"].as_str().unwrap(),
            "{n} of {n_frames} frames: {ids:?}"
        );
        if let Some(expected) = case["ids"].as_array() {
            let expected: Vec<usize> = expected
                .iter()
                .map(|id| id.as_u64().unwrap() as usize)
                .collect();
            assert_eq!(ids, expected, "{n} of {n_frames} frames");
        }
    }
}

#[test]
fn a_tick_takes_the_first_frame_at_or_after_it() {
    // 25 frames per second from tick 0: whole seconds are frames 0, 25, 50.
    let ticks: Vec<i64> = (0..60).map(|i| i * 40).collect();
    assert_eq!(fps("1", &ticks, base(1000)), [0, 25, 50]);
    // At 30000/1001 the first frame at or after 1 s is number 30 (1.001 s), not 29 (0.967 s).
    let ticks: Vec<i64> = (0..95).map(|i| i * 1001).collect();
    assert_eq!(fps("1", &ticks, base(30000)), [0, 30, 60, 90]);
}

#[test]
fn ticks_are_counted_from_the_first_frame_whenever_it_is() {
    for start in [-5000, 0, 123_456_789] {
        let ticks: Vec<i64> = (0..60).map(|i| start + i * 40).collect();
        assert_eq!(fps("1", &ticks, base(1000)), [0, 25, 50], "start {start}");
    }
}

#[test]
fn ticks_are_counted_from_the_beginning_of_a_range() {
    let ticks: Vec<i64> = (0..100).map(|i| i * 40).collect();
    let range = TimeRange {
        from: Some(parse_time("0.5").unwrap()),
        to: Some(parse_time("2.5").unwrap()),
    };
    // 0.5 s falls between frames 12 (0.48) and 13 (0.52); 1.5 s between 37 and 38; 2.5 s is outside.
    let sampling = Sampling::Fps(parse_rate("1").unwrap());
    assert_eq!(
        select(&sampling, &range, &ticks, base(1000)).unwrap(),
        [13, 38]
    );
}

#[test]
fn a_rate_above_the_video_s_takes_every_frame_once() {
    let ticks: Vec<i64> = (0..10).map(|i| i * 100).collect();
    assert_eq!(fps("1000", &ticks, base(1000)), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_gap_in_the_video_gives_one_frame_not_one_per_missed_tick() {
    assert_eq!(
        fps("1", &[0, 1000, 2000, 60_500, 61_000, 62_000], base(1000)),
        [0, 1, 2, 3, 4, 5]
    );
    assert_eq!(
        fps("1", &[0, 60_500, 60_900, 61_000], base(1000)),
        [0, 1, 3]
    );
}

#[test]
fn a_time_takes_the_frame_on_screen() {
    let ticks = [100, 200, 400];
    let at = |times: &[&str]| {
        let times = times.iter().map(|t| parse_time(t).unwrap()).collect();
        take(Sampling::At(times), &ticks, base(1000))
    };
    assert_eq!(at(&["-1"]), [0], "before the first frame");
    assert_eq!(at(&["0"]), [0], "times count from the first frame");
    assert_eq!(at(&["0.099499"]), [0]);
    assert_eq!(at(&["0.0995"]), [1], "as near as the container keeps it");
    assert_eq!(at(&["0.1"]), [1]);
    assert_eq!(at(&["0.299"]), [1]);
    assert_eq!(at(&["1:00:00"]), [2], "after the last frame");
    assert_eq!(at(&["0.3", "0", "0.05"]), [0, 2], "sorted, each once");
}

#[test]
fn a_range_has_its_beginning_and_not_its_end() {
    let ticks: Vec<i64> = (0..10).map(|i| i * 100).collect();
    let range = TimeRange {
        from: Some(parse_time("0.2").unwrap()),
        to: Some(parse_time("0.5").unwrap()),
    };
    assert_eq!(
        select(&Sampling::Every, &range, &ticks, base(1000)).unwrap(),
        [2, 3, 4]
    );
    assert_eq!(
        select(&Sampling::Uniform(2), &range, &ticks, base(1000)).unwrap(),
        [2, 4]
    );
}

#[test]
fn numbers_are_taken_once_and_in_order_or_refused() {
    let ticks: Vec<i64> = (0..10).collect();
    assert_eq!(
        take(Sampling::Indices(vec![7, 0, 7, 3]), &ticks, base(25)),
        [0, 3, 7]
    );
    let error = select(
        &Sampling::Indices(vec![10]),
        &TimeRange::ALL,
        &ticks,
        base(25),
    )
    .unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(
        error.to_string().contains("frame 10") && error.to_string().contains("10 frames"),
        "{error}"
    );
}

#[test]
fn samplings_without_a_frame_are_refused() {
    let reversed = TimeRange {
        from: Some(parse_time("2").unwrap()),
        to: Some(parse_time("1").unwrap()),
    };
    for (sampling, range) in [
        (Sampling::Uniform(0), TimeRange::ALL),
        (Sampling::At(vec![]), TimeRange::ALL),
        (Sampling::Indices(vec![]), TimeRange::ALL),
        (Sampling::Every, reversed),
    ] {
        let error = select(&sampling, &range, &[0, 1], base(1)).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{sampling:?}");
    }
}

#[test]
fn rates_are_read_exactly() {
    for (text, num, den) in [
        ("1", 1, 1),
        ("0.5", 1, 2),
        ("30000/1001", 30000, 1001),
        (" 23.976 ", 2997, 125),
        ("2/4", 1, 2),
        (".25", 1, 4),
    ] {
        assert_eq!(
            parse_rate(text).unwrap(),
            Rate::new(num, den).unwrap(),
            "{text}"
        );
    }
}

#[test]
fn invalid_rates_are_refused_with_the_allowed_range() {
    for text in [
        "0",
        "0.0",
        "-1",
        "NaN",
        "inf",
        "1e3",
        "",
        ".",
        "1/0",
        "0/1",
        "1001",
        "99999999999999999999",
        "0.0000001",
        "1/2/3",
        "1 2",
    ] {
        let error = parse_rate(text).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{text}");
        assert!(
            error.to_string().contains(text) && error.to_string().contains("at most 1000"),
            "{error}"
        );
    }
}

#[test]
fn times_are_read_exactly() {
    for (text, ticks, den) in [
        ("12.5", 125, 10),
        ("0", 0, 1),
        ("1:02:03.250", 3_723_250, 1000),
        ("90", 90, 1),
        ("1:30", 90, 1),
        ("-0.5", -5, 10),
    ] {
        assert_eq!(
            parse_time(text).unwrap(),
            Pts::new(ticks, base(den)),
            "{text}"
        );
    }
}

#[test]
fn invalid_times_are_refused() {
    for text in [
        "",
        ":",
        "1:60",
        "1:60:00",
        "1:2:3:4",
        "1.1234567",
        "abc",
        "--1",
        "1:-2",
        "99999999999",
        "1e5",
        "NaN",
    ] {
        assert_eq!(parse_time(text).unwrap_err().kind(), Kind::Usage, "{text}");
    }
}

/// Frame times that rise, with gaps of any size, from any beginning.
fn rising_ticks() -> impl Strategy<Value = Vec<i64>> {
    (
        -1_000_000_i64..1_000_000,
        prop::collection::vec(1_i64..5000, 1..200),
    )
        .prop_map(|(start, gaps)| {
            gaps.iter()
                .scan(start, |tick, gap| {
                    *tick += gap;
                    Some(*tick)
                })
                .collect()
        })
}

proptest! {
    #[test]
    fn every_sampling_rises_strictly_and_stays_in_its_budget(
        ticks in rising_ticks(), n in 1_usize..50, num in 1_u32..1000, den in 1_u32..1000, times in prop::collection::vec(-2_000_000_i64..2_000_000, 1..20),
    ) {
        let time_base = base(90_000);
        let rate = Rate::new(num, den);
        let span = (ticks[ticks.len() - 1] - ticks[0]) as u128;
        let mut cases = vec![
            (Sampling::Uniform(n), n),
            (Sampling::At(times.iter().map(|&t| Pts::new(t, time_base)).collect()), times.len()),
        ];
        if let Ok(rate) = rate {
            cases.push((Sampling::Fps(rate), (span * u128::from(num) / (u128::from(den) * 90_000)) as usize + 2));
        }
        for (sampling, budget) in cases {
            let taken = take(sampling.clone(), &ticks, time_base);
            prop_assert!(taken.is_sorted_by(|a, b| a < b), "{sampling:?} took {taken:?}");
            prop_assert!(!taken.is_empty() && taken.len() <= budget.min(ticks.len()), "{sampling:?} took {}", taken.len());
        }
    }

    #[test]
    fn ticks_taken_in_one_step_are_those_found_one_by_one(ticks in rising_ticks(), num in 1_u32..100, den in 1_u32..100) {
        // The rule as it is told: walk over the ticks, each takes the first frame at or after it, or less than one
        // of the container's ticks before it.
        let mut told: Vec<usize> = Vec::new();
        for k in 0_i128.. {
            let at_or_after = |t: &i64| i128::from(t - ticks[0] + 1) * i128::from(num) > k * i128::from(den) * 90_000;
            match ticks.iter().position(at_or_after) {
                Some(frame) if told.last() != Some(&frame) => told.push(frame),
                Some(_) => {}
                None => break,
            }
        }
        prop_assert_eq!(take(Sampling::Fps(Rate::new(num, den).unwrap()), &ticks, base(90_000)), told);
    }

    #[test]
    fn extreme_times_do_not_overflow(ticks in prop::collection::vec(any::<i64>(), 1..20), num in 1_u32..u32::MAX, from in any::<i64>()) {
        let mut ticks = ticks;
        ticks.sort_unstable();
        let time_base = TimeBase::new(num, u32::MAX).unwrap();
        let range = TimeRange { from: Some(Pts::new(from, TimeBase::new(u32::MAX, num).unwrap())), to: None };
        for sampling in [Sampling::Fps(Rate::new(1000, 1).unwrap()), Sampling::Every, Sampling::Uniform(3)] {
            prop_assert!(select(&sampling, &range, &ticks, time_base).is_ok());
        }
    }
}
