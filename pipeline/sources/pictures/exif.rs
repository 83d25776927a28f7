//! The orientation stated by a picture file: EXIF in JPEG, PNG, WebP and TIFF, XMP where
//! there is no EXIF, and the properties of a HEIF picture.

use std::{io::Cursor, path::Path};

use exif::{Exif, In, Reader, Tag};

use crate::sources::{
    boxes::{BoxFile, Section, half_word, word},
    orientation::Orientation,
};

/// The orientation of a JPEG, PNG, WebP or TIFF, from EXIF, else XMP, as in Pillow (`Image.getexif`).
pub fn orientation(bytes: &[u8]) -> Orientation {
    let of_exif = attributes(bytes).and_then(|exif| number(&exif, Tag::Orientation));
    let number = of_exif.or_else(|| of_xmp(bytes));
    number.map_or(Orientation::default(), Orientation::from_exif)
}

/// Description of a kind of TIFF that FFmpeg decodes to wrong colors; `None` for any other file.
pub fn misread_tiff(bytes: &[u8]) -> Option<&'static str> {
    let exif = attributes(bytes)?;
    let is = |tag, values: &[u32]| number(&exif, tag).is_some_and(|n| values.contains(&n));
    if is(Tag::Compression, &[6, 7]) {
        return Some("a TIFF compressed as JPEG");
    }
    is(Tag::PhotometricInterpretation, &[6]).then_some("a TIFF in YCbCr")
}

fn attributes(bytes: &[u8]) -> Option<Exif> {
    let mut reader = Reader::new();
    reader.continue_on_error(true);
    let read = reader.read_from_container(&mut Cursor::new(bytes));
    read.or_else(|error| error.distill_partial_result(drop))
        .ok()
}

fn number(exif: &Exif, tag: Tag) -> Option<u32> {
    exif.get_field(tag, In::PRIMARY)?.value.get_uint(0)
}

/// The number in `tiff:Orientation="6"` or `<tiff:Orientation>6<`.
fn of_xmp(bytes: &[u8]) -> Option<u32> {
    let name = b"tiff:Orientation";
    let at = bytes.windows(name.len()).position(|found| found == name)? + name.len();
    match bytes.get(at..)? {
        [b'=', b'"', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..] => {
            Some(u32::from(digit - b'0'))
        }
        _ => None,
    }
}

/// The orientation of the primary picture of the HEIF file at `path`: its properties `irot` and `imir`
/// (ISO 23008-12, sections 6.5.10 and 6.5.12) in the order in which they are listed.
pub fn heif_orientation(path: &Path) -> Option<Orientation> {
    let mut file = BoxFile::open(path).ok()?;
    let whole = file.whole().ok()?;
    let meta = file.inside(whole, &[b"meta"]).ok()??.behind(4);
    let primary = primary_item(&mut file, meta)?;
    let lists = file.inside(meta, &[b"iprp"]).ok()??;
    let properties = file.inside(lists, &[b"ipco"]).ok()??;
    let properties = file.children(properties).ok()?;
    let associations = file.inside(lists, &[b"ipma"]).ok()??;
    let associations = file.bytes(associations).ok()?;
    let turns = properties_of(&associations, primary)
        .into_iter()
        .filter_map(|number| turn(&mut file, *properties.get(number.checked_sub(1)?)?));
    Some(turns.fold(Orientation::default(), Orientation::then))
}

/// The ID of the primary item (`pitm`).
fn primary_item(file: &mut BoxFile, meta: Section) -> Option<u32> {
    let pitm = file.inside(meta, &[b"pitm"]).ok()??;
    let bytes = file.bytes(pitm).ok()?;
    match bytes.first()? {
        0 => half_word(&bytes, 4).map(u32::from),
        _ => word(&bytes, 4),
    }
}

/// The 1-based indices of the properties of `item` in an `ipma` (ISO 23008-12 section 9.3.1).
fn properties_of(ipma: &[u8], item: u32) -> Vec<usize> {
    let is_long = ipma.first().is_some_and(|&version| version > 0);
    let is_wide = ipma.get(3).is_some_and(|flags| flags & 1 != 0);
    let n_entries = word(ipma, 4).unwrap_or(0);
    let mut at = 8;
    for _ in 0..n_entries {
        let (number, step) = match is_long {
            true => (word(ipma, at), 4),
            false => (half_word(ipma, at).map(u32::from), 2),
        };
        let Some(&n) = ipma.get(at + step) else {
            break;
        };
        let (first, width) = (at + step + 1, if is_wide { 2 } else { 1 });
        let end = first + usize::from(n) * width;
        let listed = ipma.get(first..end).unwrap_or_default();
        if number == Some(item) {
            // The highest bit marks the property as essential and is not part of its index.
            return match is_wide {
                true => listed
                    .chunks_exact(2)
                    .map(|pair| usize::from(u16::from_be_bytes([pair[0] & 0x7f, pair[1]])))
                    .collect(),
                false => listed.iter().map(|n| usize::from(n & 0x7f)).collect(),
            };
        }
        at = end;
    }
    Vec::new()
}

fn turn(file: &mut BoxFile, property: Section) -> Option<Orientation> {
    let value = || -> Option<u8> { file.bytes(property).ok()?.first().copied() };
    let number = match &property.kind {
        // Quarter turns counterclockwise.
        b"irot" => [1, 8, 3, 6][usize::from({ value }()? & 3)],
        // 0 flips top and bottom, 1 left and right.
        b"imir" => [4, 2][usize::from({ value }()? & 1)],
        _ => return None,
    };
    Some(Orientation::from_exif(number))
}
