//! Files of `torch.save` older than torch 1.6: what Python 2 and Python 3 wrote, and what is no such file.

use std::{fs, path::Path};

use longreel_kernels::mapping::MappedBytes;
use longreel_models::{
    checkpoint::{foreign::View, torch},
    error::{Error, Kind},
};

use crate::support::golden;

fn read(bytes: &[u8]) -> Result<Vec<(String, View)>, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.pth");
    fs::write(&path, bytes).unwrap();
    torch::read(&MappedBytes::open(&path).unwrap())
}

fn bytes(name: &str) -> Vec<u8> {
    fs::read(golden::path(name)).unwrap()
}

fn numbers(tensors: &[(String, View)], name: &str) -> (Vec<usize>, Vec<f32>) {
    let (_, view) = tensors.iter().find(|(found, _)| found == name).unwrap();
    (view.shape().to_vec(), view.to_f32().unwrap())
}

#[test]
fn tensors_of_python_3_keep_their_strides_types_and_shared_storages() {
    let tensors = read(&bytes("torch/old.pth")).unwrap();
    let names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["turned", "same_storage", "half", "brain"]);
    let eighths = |numbers: &[i32]| numbers.iter().map(|&n| n as f32 / 8.0).collect();
    let turned = eighths(&[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
    assert_eq!(numbers(&tensors, "turned"), (vec![4, 3], turned));
    let same = numbers(&tensors, "same_storage");
    assert_eq!(same, (vec![3], eighths(&[12, 13, 14])));
    assert_eq!(numbers(&tensors, "half"), (vec![2], vec![0.5, -2.0]));
    assert_eq!(numbers(&tensors, "brain"), (vec![2, 1], vec![1.0, -3.0]));
}

#[test]
fn the_file_that_lpips_wrote_with_python_2_is_read() {
    let tensors = read(&bytes("lpips/vgg.pth")).unwrap();
    // Channels, and the sums that torch finds.
    let expected = [
        (64, 6.926),
        (128, 8.8583),
        (256, 17.515),
        (512, 51.5213),
        (512, 47.0349),
    ];
    assert_eq!(tensors.len(), expected.len());
    for (i, (channels, sum)) in expected.into_iter().enumerate() {
        let (shape, weights) = numbers(&tensors, &format!("lin{i}.model.1.weight"));
        assert_eq!(shape, [1, channels, 1, 1]);
        let found: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        assert!(
            (found - sum).abs() < 1e-4,
            "lin{i}: {found}, expected {sum}"
        );
    }
}

#[test]
fn a_file_that_ends_early_is_an_error_wherever_it_ends() {
    for name in ["torch/old.pth", "lpips/vgg.pth"] {
        let whole = bytes(name);
        for n in 0..whole.len() {
            let error = read(&whole[..n]).err();
            let error = error.unwrap_or_else(|| panic!("{name}: {n} bytes are read"));
            assert!(matches!(error.kind(), Kind::BadInput | Kind::Io), "{error}");
        }
    }
}

#[test]
fn what_such_a_file_cannot_be_is_said() {
    let whole = bytes("torch/old.pth");
    let with = |from: &[u8], to: &[u8]| {
        let at = whole.windows(from.len()).position(|part| part == from);
        let at = at.unwrap_or_else(|| panic!("no {from:?}"));
        [&whole[..at], to, &whole[at + from.len()..]].concat()
    };
    for (bytes, expected) in [
        (with(b"M\xe9\x03.", b"M\xe8\x03."), "not version 1001"),
        (
            with(b"little_endian", b"mittle_endian"),
            "not little-endian",
        ),
        (
            with(b"OrderedDict", b"OrderedDuct"),
            "global collections.OrderedDuct is not on the list",
        ),
    ] {
        let error = read(&bytes).err().unwrap();
        assert_eq!(error.kind(), Kind::BadInput);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let mut long = whole.clone();
    // The count of the last storage's elements.
    let at = long.len() - 4 - 8;
    long[at..at + 8].fill(0x7f);
    let error = read(&long).err().unwrap().to_string();
    assert!(error.contains("lies beyond the end of the file"), "{error}");
    let text = read(Path::new("Cargo.toml").to_str().unwrap().as_bytes());
    let error = text.err().unwrap().to_string();
    assert!(error.contains("not a file of torch.save"), "{error}");
}
