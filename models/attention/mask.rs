//! Which query sees which key, decided per pair and for whole blocks at once.

use std::ops::Range;

/// What a block of queries sees of a block of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No query sees any key.
    Skip,
    /// Every query sees every key.
    Full,
    /// Ask per pair.
    Mixed,
}

/// The rule of one context. Queries and keys are numbered by their place in it.
#[derive(Debug, Clone, Copy)]
pub struct Mask<'a> {
    /// A query sees no key after its own place.
    pub causal: bool,
    /// Segment of every place, queries included; a query sees keys of its own segment only.
    pub segments: Option<&'a [u32]>,
    /// Whether the key at a place may be seen at all; `true` where absent.
    pub keys: Option<&'a [bool]>,
}

impl Mask<'_> {
    /// Every earlier place and its own: a plain context.
    pub const CAUSAL: Self = Self {
        causal: true,
        segments: None,
        keys: None,
    };

    /// Whether the query at `query` sees the key at `key`.
    pub fn sees(&self, query: usize, key: usize) -> bool {
        let in_order = !self.causal || key <= query;
        let allowed = self.keys.is_none_or(|keys| keys.get(key) == Some(&true));
        let together = self
            .segments
            .is_none_or(|segments| segments.get(query) == segments.get(key));
        in_order && allowed && together
    }

    /// The verdict for a block: never `Skip` when a pair is visible, never `Full` when one is not.
    pub fn verdict(&self, queries: Range<usize>, keys: Range<usize>) -> Verdict {
        if queries.is_empty() || keys.is_empty() {
            return Verdict::Skip;
        }
        let parts = [
            self.order(&queries, &keys),
            self.allowed(&keys),
            self.together(&queries, &keys),
        ];
        if parts.contains(&Verdict::Skip) {
            Verdict::Skip
        } else if parts.contains(&Verdict::Mixed) {
            Verdict::Mixed
        } else {
            Verdict::Full
        }
    }

    /// Fills `visible` with what the query sees of `keys`.
    pub fn row(&self, query: usize, keys: Range<usize>, visible: &mut [bool]) {
        let after = (query + 1).saturating_sub(keys.start);
        let in_order = if self.causal { after } else { keys.len() };
        for (j, visible) in visible.iter_mut().enumerate() {
            *visible = j < in_order;
        }
        if let Some(allowed) = self.keys.and_then(|all| all.get(keys.clone())) {
            for (visible, &allowed) in visible.iter_mut().zip(allowed) {
                *visible &= allowed;
            }
        }
        if let Some((own, others)) = self
            .segments
            .and_then(|all| Some((all.get(query)?, all.get(keys)?)))
        {
            for (visible, other) in visible.iter_mut().zip(others) {
                *visible &= other == own;
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

    fn allowed(&self, keys: &Range<usize>) -> Verdict {
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
            (Some((a, b)), Some((c, d))) if a == b && c == d => Verdict::Full,
            _ => Verdict::Mixed,
        }
    }
}
