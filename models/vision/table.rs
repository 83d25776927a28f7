//! Interpolation of a square table of positions to another size.

/// The coefficient `a` of PyTorch's bicubic `interpolate` (`UpSample.h`).
const SHARPNESS: f64 = -0.75;

/// Input index and weight of one tap.
type Tap = (usize, f64);

/// table `[from, from, width]` → `[to, to, width]`, bicubic, without antialiasing:
/// `interpolate(mode="bicubic", align_corners=False)`, with which transformers adapts
/// DINOv2's positions to a picture's size.
pub fn stretched(table: &[f32], width: usize, from: usize, to: usize) -> Vec<f32> {
    let taps: Vec<[Tap; 4]> = (0..to).map(|at| taps(at, from, to)).collect();
    let place = |row: usize, column: usize| &table[(row * from + column) * width..][..width];
    let mut out = Vec::with_capacity(to * to * width);
    for (down, right) in taps.iter().flat_map(|d| taps.iter().map(move |r| (d, r))) {
        let mut sum = vec![0.0_f64; width];
        for (row, y) in down {
            for (column, x) in right {
                let here = sum.iter_mut().zip(place(*row, *column));
                here.for_each(|(sum, p)| *sum += y * x * f64::from(*p));
            }
        }
        out.extend(sum.into_iter().map(|x| x as f32));
    }
    out
}

/// The four taps of output `at` of `to`; indices beyond the edge are clamped.
fn taps(at: usize, from: usize, to: usize) -> [Tap; 4] {
    let middle = (at as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    let first = middle.floor();
    [-1.0, 0.0, 1.0, 2.0].map(|step| {
        let place = (first + step).clamp(0.0, (from - 1) as f64);
        (place as usize, cubic((middle - first - step).abs()))
    })
}

/// The cubic convolution kernel of Keys (1981), for distances up to 2.
fn cubic(t: f64) -> f64 {
    let a = SHARPNESS;
    match t {
        t if t <= 1.0 => ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0,
        t => (((t - 5.0) * t + 8.0) * t - 4.0) * a,
    }
}

#[cfg(test)]
mod tests {
    use super::stretched;

    #[test]
    fn the_same_size_is_a_copy_and_symmetry_is_kept() {
        let table: Vec<f32> = (0..50).map(|i| (i * i % 17) as f32).collect();
        assert_eq!(stretched(&table, 2, 5, 5), table);
        for to in [3, 8, 11] {
            let level = stretched(&[0.75; 25], 1, 5, to);
            assert!(level.iter().all(|x| (x - 0.75).abs() < 1e-6), "{level:?}");
            let hill: Vec<f32> = (0..25).map(|i| (i % 5 * (4 - i % 5)) as f32).collect();
            let hill = stretched(&hill, 1, 5, to);
            let line = &hill[to..2 * to];
            let mirrored = line.iter().rev().zip(line);
            assert!(
                mirrored.clone().all(|(a, b)| (a - b).abs() < 1e-5),
                "{line:?}"
            );
            assert!(line[0] < line[to / 2], "{line:?}");
        }
    }
}
