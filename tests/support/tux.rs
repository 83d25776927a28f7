//! A writer of LWM's streaming checkpoints, for forms and sizes of which there is no golden file.

use std::io::{self, Write};

/// flax's limit of an array that is written in one piece.
pub const CHUNK_BYTES: usize = 1 << 30;

/// Writes `[path, value]` where the value is an array of `element_bytes`-sized
/// elements that `data` produces in runs of at most `chunk_bytes`.
pub fn write_array<W: Write>(
    out: &mut W,
    path: &[&str],
    (dtype, element_bytes): (&str, usize),
    shape: &[usize],
    chunk_bytes: usize,
    mut data: impl FnMut(&mut W, usize) -> io::Result<()>,
) -> io::Result<()> {
    let segments = document(dtype, element_bytes, shape, chunk_bytes);
    let total: usize = segments.iter().map(|(header, n)| header.len() + n).sum();
    out.write_all(&key(path))?;
    out.write_all(&bin(total))?;
    for (header, n) in segments {
        out.write_all(&header)?;
        data(out, n)?;
    }
    Ok(())
}

/// The same for data in memory.
pub fn array(path: &[&str], dtype: (&str, usize), shape: &[usize], data: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    write_array(&mut out, path, dtype, shape, CHUNK_BYTES, |out, n| {
        out.extend_from_slice(&data[at..at + n]);
        at += n;
        Ok(())
    })
    .unwrap();
    out
}

/// A pair whose value is a plain msgpack integer, as the optimizer's step may be.
pub fn integer(path: &[&str], value: u8) -> Vec<u8> {
    [key(path), bin(1), vec![value & 0x7f]].concat()
}

/// One array of a flax document: the inner document of [`array`] alone.
pub fn inner(dtype: (&str, usize), shape: &[usize], data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (header, n) in document(dtype.0, dtype.1, shape, CHUNK_BYTES) {
        out.extend(header);
        out.extend_from_slice(&data[..n]);
    }
    out
}

/// msgpack text of at most 255 bytes.
pub fn text(s: &str) -> Vec<u8> {
    let mut out = vec![0xd9, u8::try_from(s.len()).unwrap()];
    out.extend(s.bytes());
    out
}

fn key(path: &[&str]) -> Vec<u8> {
    let mut out = vec![0x92, 0x90 | path.len() as u8];
    out.extend(path.iter().flat_map(|part| text(part)));
    out
}

fn bin(n: usize) -> Vec<u8> {
    let n = u32::try_from(n).expect("msgpack's bytes end at 4 GiB");
    [&[0xc6], &n.to_be_bytes()[..]].concat()
}

fn uint(n: usize) -> Vec<u8> {
    [&[0xcf], &(n as u64).to_be_bytes()[..]].concat()
}

/// What stands before each run of data, and the run's length.
fn document(dtype: &str, size: usize, shape: &[usize], limit: usize) -> Vec<(Vec<u8>, usize)> {
    let n: usize = shape.iter().product();
    if n * size <= limit {
        return vec![(extension(dtype, shape, n * size), n * size)];
    }
    let per_chunk = limit / size;
    let mut header = vec![0x83];
    header.extend([text("__msgpack_chunked_array__"), vec![0xc3]].concat());
    header.extend([text("shape"), vec![0x80 | shape.len() as u8]].concat());
    for (i, &d) in shape.iter().enumerate() {
        header.extend([text(&i.to_string()), uint(d)].concat());
    }
    let n_chunks = n.div_ceil(per_chunk);
    header.extend(text("chunks"));
    header.push(0xde);
    header.extend(u16::try_from(n_chunks).unwrap().to_be_bytes());
    (0..n_chunks)
        .map(|i| {
            let count = per_chunk.min(n - i * per_chunk);
            let mut header = std::mem::take(&mut header);
            header.extend(text(&i.to_string()));
            header.extend(extension(dtype, &[count], count * size));
            (header, count * size)
        })
        .collect()
}

fn extension(dtype: &str, shape: &[usize], bytes: usize) -> Vec<u8> {
    let mut payload = vec![0x93, 0x90 | shape.len() as u8];
    payload.extend(shape.iter().flat_map(|&d| uint(d)));
    payload.extend(text(dtype));
    payload.extend(bin(bytes));
    let length = u32::try_from(payload.len() + bytes).unwrap();
    let mut out = vec![0xc9];
    out.extend(length.to_be_bytes());
    out.push(1);
    out.extend(payload);
    out
}
