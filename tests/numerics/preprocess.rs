//! Pictures through LWM's preprocessing, equal to Pillow 10.2 to the byte.

use longreel_models::vision::image::{
    RgbView, lwm_frame, lwm_resize_shape, resize_bicubic, to_signed_unit,
};

use crate::support::golden::{Golden, path};

/// A decoded PNG: width, height, RGB.
struct Picture(usize, usize, Vec<u8>);

impl Picture {
    fn view(&self) -> RgbView<'_> {
        RgbView::new(self.0, self.1, &self.2).unwrap()
    }
}

/// `frames/NAME.png` as RGB; alpha is dropped, as Pillow's `convert('RGB')` does.
fn png(name: &str) -> Picture {
    let file = std::fs::File::open(path(&format!("frames/{name}.png"))).unwrap();
    let mut decoder = png::Decoder::new(std::io::BufReader::new(file));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    let rgb = |pixel: &[u8]| match *pixel {
        [grey] | [grey, _] => [grey; 3],
        [r, g, b] | [r, g, b, _] => [r, g, b],
        _ => panic!("{name}: {pixel:?}"),
    };
    let samples = info.color_type.samples();
    let data = data[..info.buffer_size()]
        .chunks_exact(samples)
        .flat_map(rgb)
        .collect();
    Picture(info.width as usize, info.height as usize, data)
}

/// `img_big_64_u8` is picture `img_big` at 64.
fn picture_and_size(tensor: &str) -> (String, usize) {
    let stem = tensor
        .trim_end_matches("_u8")
        .trim_end_matches("_f32")
        .trim_end_matches("_resized");
    let (name, size) = stem.rsplit_once('_').unwrap();
    (name.to_owned(), size.parse().unwrap())
}

fn assert_bytes(what: &str, got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len(), "{what}: number of bytes");
    let wrong = got.iter().zip(expected).filter(|(a, b)| a != b).count();
    let first = got.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(
        wrong, 0,
        "{what}: bytes that differ, the first at {first:?}"
    );
}

#[test]
fn every_golden_picture_is_equal_to_the_byte() {
    let golden = Golden::open("frames/expected.safetensors");
    let mut kinds = [0; 3];
    for tensor in golden.names() {
        let (name, size) = picture_and_size(&tensor);
        let picture = png(&name);
        if tensor.ends_with("_resized_u8") {
            let [width, height] = lwm_resize_shape(picture.0, picture.1, size);
            assert_eq!(golden.shape(&tensor), [height, width, 3], "{tensor}");
            assert_bytes(
                &tensor,
                &resize_bicubic(picture.view(), width, height),
                &golden.u8(&tensor),
            );
            kinds[0] += 1;
        } else if tensor.ends_with("_u8") {
            assert_bytes(
                &tensor,
                &lwm_frame(picture.view(), size).unwrap(),
                &golden.u8(&tensor),
            );
            kinds[1] += 1;
        } else {
            let got = to_signed_unit(&lwm_frame(picture.view(), size).unwrap());
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(
                bits(&got) == bits(&golden.f32(&tensor)),
                "{tensor}: f32 pixels differ in some bit"
            );
            kinds[2] += 1;
        }
    }
    assert_eq!(
        kinds,
        [2, 8, 2],
        "resized, cropped and f32 tensors that were compared"
    );
}

#[test]
fn the_short_side_becomes_the_size_and_the_long_side_is_truncated() {
    for (width, height, size, expected) in [
        (1920, 1080, 256, [455, 256]),
        (1080, 1920, 256, [256, 455]),
        (640, 480, 64, [85, 64]),
        (641, 359, 256, [457, 256]),
        (300, 300, 64, [64, 64]),
    ] {
        assert_eq!(
            lwm_resize_shape(width, height, size),
            expected,
            "{width}x{height}"
        );
    }
}
