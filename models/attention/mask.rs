//! Which query attends to which key, decided per pair and for whole blocks.

use std::ops::Range;

/// How much of a block of keys is visible to a block of queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No query sees any key.
    Skip,
    /// Every query sees every key.
    Full,
    /// Some pairs are visible: ask per pair.
    Mixed,
}

/// The attention mask of one context. Queries and keys are given by their token index in it.
#[derive(Debug, Clone, Copy)]
pub struct Mask<'a> {
    /// A query attends to no later key.
    pub causal: bool,
    /// Sliding window: a query attends to itself and the `window − 1` tokens before it; unlimited where absent.
    pub window: Option<usize>,
    /// Segment id of every token, queries included; a query attends to keys of its own segment only.
    pub segments: Option<&'a [u32]>,
    /// Whether each key may be attended to at all (padding may not); every key where absent.
    pub keys: Option<&'a [bool]>,
}

impl Mask<'_> {
    /// Each token attends to itself and everything before it: a plain context.
    pub const CAUSAL: Self = Self {
        causal: true,
        window: None,
        segments: None,
        keys: None,
    };

    /// Whether the query at token index `query` attends to the key at `key`.
    pub fn sees(&self, query: usize, key: usize) -> bool {
        let in_order = !self.causal || key <= query;
        let near = key >= self.first_near(query);
        let allowed = self.keys.is_none_or(|keys| keys.get(key) == Some(&true));
        let together = self
            .segments
            .is_none_or(|segments| segments.get(query) == segments.get(key));
        in_order && near && allowed && together
    }

    /// The verdict for a block: never `Skip` when a pair is visible, never `Full` when one is not.
    pub fn verdict(&self, queries: Range<usize>, keys: Range<usize>) -> Verdict {
        if queries.is_empty() || keys.is_empty() {
            return Verdict::Skip;
        }
        let mut verdict = Verdict::Full;
        for part in [Self::order, Self::near, Self::allowed, Self::together] {
            match part(self, &queries, &keys) {
                Verdict::Skip => return Verdict::Skip,
                Verdict::Mixed => verdict = Verdict::Mixed,
                Verdict::Full => {}
            }
        }
        verdict
    }

    /// Fills `bits`, one bit per key of `keys`, with those visible to the query; bits after the last key are zero.
    pub fn bits(&self, query: usize, keys: Range<usize>, bits: &mut [u32]) {
        let after = (query + 1).saturating_sub(keys.start).min(keys.len());
        let in_order = if self.causal { after } else { keys.len() };
        let far = self.first_near(query).saturating_sub(keys.start);
        for (word, bits) in bits.iter_mut().enumerate() {
            let [far, in_order] = [far, in_order].map(|n| low_bits(n.saturating_sub(32 * word)));
            *bits = in_order & !far;
        }
        if let Some(allowed) = self.keys.and_then(|all| all.get(keys.clone())) {
            for (bits, allowed) in bits.iter_mut().zip(allowed.chunks(32)) {
                *bits &= gather(allowed.iter().copied());
            }
        }
        if let Some((own, others)) = self
            .segments
            .and_then(|all| Some((all.get(query)?, all.get(keys)?)))
        {
            for (bits, others) in bits.iter_mut().zip(others.chunks(32)) {
                *bits &= gather(others.iter().map(|other| other == own));
            }
        }
    }

    fn order(&self, queries: &Range<usize>, keys: &Range<usize>) -> Verdict {
        if !self.causal || keys.end <= queries.start + 1 {
            Verdict::Full
        } else if keys.start >= queries.end {
            Verdict::Skip
        } else {
            Verdict::Mixed
        }
    }

    /// The first token index inside the window of the query at `query`.
    fn first_near(&self, query: usize) -> usize {
        self.window
            .map_or(0, |window| (query + 1).saturating_sub(window))
    }

    fn near(&self, queries: &Range<usize>, keys: &Range<usize>) -> Verdict {
        // `first_near` rises with the query: the last query decides Full, the first one Skip.
        if keys.start >= self.first_near(queries.end - 1) {
            Verdict::Full
        } else if keys.end <= self.first_near(queries.start) {
            Verdict::Skip
        } else {
            Verdict::Mixed
        }
    }

    fn allowed(&self, _queries: &Range<usize>, keys: &Range<usize>) -> Verdict {
        let Some(keys) = self.keys.and_then(|all| all.get(keys.clone())) else {
            return Verdict::Full;
        };
        match (keys.contains(&true), keys.contains(&false)) {
            (true, false) => Verdict::Full,
            (true, true) => Verdict::Mixed,
            (false, _) => Verdict::Skip,
        }
    }

    fn together(&self, queries: &Range<usize>, keys: &Range<usize>) -> Verdict {
        let Some(segments) = self.segments else {
            return Verdict::Full;
        };
        let bounds = |range: &Range<usize>| {
            let ids = segments.get(range.clone())?.iter().copied();
            Some((ids.clone().min()?, ids.max()?))
        };
        match (bounds(queries), bounds(keys)) {
            (Some((a, b)), Some((c, d))) if b < c || d < a => Verdict::Skip,
            // The ranges overlap here, so that two single ids are equal.
            (Some((a, b)), Some((c, d))) if a == b && c == d => Verdict::Full,
            _ => Verdict::Mixed,
        }
    }
}

/// The lowest `n` bits of a word, all of them from 32 on.
fn low_bits(n: usize) -> u32 {
    if n >= 32 { u32::MAX } else { (1 << n) - 1 }
}

/// Up to 32 flags as the bits of a word, the first lowest.
fn gather(flags: impl Iterator<Item = bool>) -> u32 {
    let bits = flags.enumerate().map(|(i, flag)| u32::from(flag) << i);
    bits.fold(0, |word, bit| word | bit)
}
