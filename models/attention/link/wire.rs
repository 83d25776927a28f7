//! Messages as bytes: an envelope, then the blocks that it announces, each as it lies in memory.
//!
//! An envelope is the length of its head (u32, little-endian), the head (JSON), and
//! numbers (f32, little-endian). An empty envelope is a heartbeat.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Failure, Message};
use crate::{
    attention::kv_cache::{BLOCK_TOKENS, KvDtype, KvShape, PackedBlock, PositionedBlock},
    error::{Error, Kind, Result},
};

#[derive(Serialize, Deserialize)]
struct MessageHead {
    header: String,
    numbers: usize,
    /// First token index and number of tokens of each block.
    blocks: Vec<(usize, usize)>,
    kv_heads: usize,
    d: usize,
    kv_dtype: String,
    failure: Option<Failure>,
}

/// The envelope of `message`.
///
/// # Errors
/// `Internal` when its blocks differ in shape.
pub fn envelope(message: &Message) -> Result<Vec<u8>> {
    let shape = message.blocks.first().map(|placed| placed.block.shape());
    if message
        .blocks
        .iter()
        .any(|b| Some(b.block.shape()) != shape)
    {
        let message = "the blocks of a message differ in shape";
        return Err(Error::new(Kind::Internal, message));
    }
    let head = MessageHead {
        header: message.header.clone(),
        numbers: message.numbers.len(),
        blocks: message.blocks.iter().map(|b| (b.start, b.len)).collect(),
        kv_heads: shape.map_or(0, |shape| shape.kv_heads),
        d: shape.map_or(0, |shape| shape.d),
        kv_dtype: shape.map_or("", |shape| shape.dtype.name()).to_owned(),
        failure: message.failure.clone(),
    };
    let head = serde_json::to_vec(&head)
        .map_err(|e| Error::with_source(Kind::Internal, "write the head of a message", e))?;
    let mut bytes = Vec::with_capacity(4 + head.len() + 4 * message.numbers.len());
    bytes.extend((head.len() as u32).to_le_bytes());
    bytes.extend(&head);
    for number in &message.numbers {
        bytes.extend(number.to_le_bytes());
    }
    Ok(bytes)
}

/// A message whose blocks have not all arrived.
pub struct Arriving {
    message: Message,
    shape: KvShape,
    /// First token index and number of tokens of the blocks to come, last first.
    awaited: Vec<(usize, usize)>,
}

impl Arriving {
    /// The message that an envelope announces; `None` for a heartbeat.
    ///
    /// # Errors
    /// `BadInput` when the bytes are not an envelope.
    pub fn open(bytes: &[u8]) -> Result<Option<Self>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let cut = || bad(format!("an envelope of {} bytes is cut short", bytes.len()));
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (head, numbers) = rest.split_at_checked(length).ok_or_else(cut)?;
        let head: MessageHead = serde_json::from_slice(head)
            .map_err(|e| Error::with_source(Kind::BadInput, "read the head of a message", e))?;
        if head.numbers.checked_mul(4) != Some(numbers.len()) {
            let found = format!("{} bytes of numbers", numbers.len());
            return Err(bad(format!("{found}, expected {} numbers", head.numbers)));
        }
        let shape = shape(&head)?;
        let number = |bytes: &[u8]| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes);
        Ok(Some(Self {
            message: Message {
                header: head.header,
                numbers: numbers.chunks_exact(4).map(number).collect(),
                blocks: Vec::new(),
                failure: head.failure,
            },
            shape,
            awaited: head.blocks.into_iter().rev().collect(),
        }))
    }

    /// Whether every block has arrived.
    pub fn is_whole(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Adds the bytes of the next block.
    ///
    /// # Errors
    /// `BadInput` when none is expected or its length is wrong, `TooLarge` when memory is short.
    pub fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let expected = self.shape.block_bytes();
        let awaited = self.awaited.pop();
        let (start, len) = awaited.filter(|_| bytes.len() == expected).ok_or_else(|| {
            bad(format!(
                "a block of {} bytes came, expected {expected}",
                bytes.len()
            ))
        })?;
        let block = PackedBlock::from_bytes(self.shape, bytes).ok_or_else(|| {
            let message = format!("no memory for {expected} bytes of keys and values");
            Error::new(Kind::TooLarge, message)
        })?;
        let block = Arc::new(block);
        self.message
            .blocks
            .push(PositionedBlock { start, len, block });
        Ok(())
    }

    /// The message with the blocks that have arrived.
    pub fn into_message(self) -> Message {
        self.message
    }
}

/// The shape of the blocks to come, checked against what another rank could have.
fn shape(head: &MessageHead) -> Result<KvShape> {
    if head.blocks.is_empty() {
        let dtype = KvDtype::F32;
        return Ok(KvShape {
            kv_heads: 0,
            d: 0,
            dtype,
        });
    }
    // Bounded before block lengths are computed from them: the head comes from another process.
    let extents = 1..=1 << 16;
    let possible = extents.contains(&head.kv_heads) && extents.contains(&head.d);
    let dtype = KvDtype::named(&head.kv_dtype).filter(|_| possible);
    let filled = |&(start, len): &(usize, usize)| {
        (1..=BLOCK_TOKENS).contains(&len) && start.checked_add(len).is_some()
    };
    match dtype.filter(|_| head.blocks.iter().all(filled)) {
        Some(dtype) => Ok(KvShape {
            kv_heads: head.kv_heads,
            d: head.d,
            dtype,
        }),
        None => Err(bad(format!(
            "{} blocks of {} heads, {} channels, type {:?} are impossible",
            head.blocks.len(),
            head.kv_heads,
            head.d,
            head.kv_dtype
        ))),
    }
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
