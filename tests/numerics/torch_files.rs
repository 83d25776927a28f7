//! Files of `torch.save` older than torch 1.6: what Python 2 and Python 3 wrote, and what is no such file.

use std::fs;

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
fn parameters_and_tensors_are_read_however_torch_0_pickled_them() {
    let tensors = read(&bytes("torch/parameters.pth")).unwrap();
    for name in ["plain", "called", "new", "rebuilt"] {
        let expected = (vec![2, 2], vec![0.5, 1.5, 2.5, 3.5]);
        assert_eq!(numbers(&tensors, name), expected, "{name}");
    }
    let by_class = (vec![2], vec![1.25, -8.0]);
    assert_eq!(numbers(&tensors, "by_class"), by_class);
}

/// What a file of one tensor `w`, [0.25, 4], says of the machine, the tensor and its storage; and more bytes of
/// storages.
struct Single<'a> {
    machine: &'a [u8],
    part: &'a [u8],
    names: &'a [u8],
    more: &'a [u8],
}

const SINGLE: Single = Single {
    machine: b"}U\x0dlittle_endian\x88s",
    part: b"N",
    names: b"]U\x0210a",
    more: b"",
};

impl Single<'_> {
    /// As Python 2 pickles a state dict of one tensor: a list of one list of two, appended without a mark.
    fn bytes(&self) -> Vec<u8> {
        let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
        let tensors = [
            b"ccollections\nOrderedDict\n]](T\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor\n("
                .as_slice(),
            b"(U\x07storagectorch\nFloatStorage\nU\x0210U\x03cpuK\x02",
            self.part,
            b"tQK\x00K\x02\x85K\x01\x85tRea\x85R",
        ];
        let pickles = [b"M\xe9\x03", self.machine, &tensors.concat(), self.names];
        let pickles = pickles.map(|pickle| [b"\x80\x02", pickle, b"."].concat());
        let storage = [2_u64.to_le_bytes(), [0, 0, 0x80, 0x3e, 0, 0, 0x80, 0x40]];
        [
            magic,
            pickles.concat().as_slice(),
            &storage.concat(),
            self.more,
        ]
        .concat()
    }
}

#[test]
fn a_single_tensor_of_python_2_is_read() {
    let tensors = read(&SINGLE.bytes()).unwrap();
    assert_eq!(tensors.len(), 1);
    assert_eq!(numbers(&tensors, "w"), (vec![2], vec![0.25, 4.0]));
}

#[test]
fn unsupported_files_are_refused_with_the_reason() {
    let again = [1_u64.to_le_bytes().as_slice(), &[0; 4]].concat();
    for (single, expected) in [
        (
            Single {
                machine: b"}U\x0dlittle_endian\x89s",
                ..SINGLE
            },
            "the machine that wrote it was not little-endian",
        ),
        (
            Single {
                part: b"(U\x0211K\x00K\x01t",
                ..SINGLE
            },
            "a part of a storage, expected a whole one",
        ),
        (
            Single {
                names: b"]U\x0211a",
                ..SINGLE
            },
            "no tensor uses storage \"11\"",
        ),
        (
            Single {
                names: b"](U\x0210U\x0210e",
                more: &again,
                ..SINGLE
            },
            "storage 10 comes twice",
        ),
        (
            Single {
                names: b"](U\x0210NeN",
                ..SINGLE
            },
            "the names of the storages are not a list",
        ),
        (
            Single {
                names: b"]",
                ..SINGLE
            },
            "no storage 10 in the file",
        ),
    ] {
        let error = read(&single.bytes()).err().unwrap();
        assert_eq!(error.kind(), Kind::BadInput);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_file_that_ends_early_is_an_error_wherever_it_ends() {
    for name in ["torch/old.pth", "torch/parameters.pth", "lpips/vgg.pth"] {
        let whole = bytes(name);
        for n in 0..whole.len() {
            let error = read(&whole[..n]).err();
            let error = error.unwrap_or_else(|| panic!("{name}: {n} bytes are read"));
            assert!(matches!(error.kind(), Kind::BadInput | Kind::Io), "{error}");
        }
    }
}

#[test]
fn bytes_of_something_else_are_an_error_that_names_the_place() {
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
    // The count of the last storage's two elements.
    let at = long.len() - 4 - 8;
    long[at..at + 8].fill(0xff);
    let error = read(&long).err().unwrap().to_string();
    assert!(error.contains("elements are out of range"), "{error}");
    long[at..at + 8].copy_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0]);
    let error = read(&long).err().unwrap().to_string();
    assert!(error.contains("but only 4 are left"), "{error}");
    let error = read(b"no archive").err().unwrap().to_string();
    assert!(error.contains("neither a zip archive"), "{error}");
}
