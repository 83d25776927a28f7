//! Renaming of a foreign checkpoint's tensors, by patterns applied one after another.

use std::borrow::Cow;

use regex::Regex;

use crate::error::{Error, Kind, Result};

/// The renaming of a foreign checkpoint's tensors.
#[derive(Debug, Clone, Default)]
pub struct KeyMap(Vec<(Regex, String)>);

impl KeyMap {
    /// Patterns and their replacements, applied in order; an empty name drops the tensor.
    ///
    /// # Errors
    /// `Internal` when a pattern is invalid.
    pub fn new(rules: &[(String, String)]) -> Result<Self> {
        let rule = |(from, to): &(String, String)| {
            let pattern = Regex::new(from);
            let pattern = pattern.map_err(|e| {
                Error::with_source(Kind::Internal, format!("read the pattern {from}"), e)
            })?;
            Ok((pattern, to.clone()))
        };
        Ok(Self(rules.iter().map(rule).collect::<Result<_>>()?))
    }

    /// This program's name of the tensor `name`; `None` for a dropped one.
    pub fn rename(&self, name: &str) -> Option<String> {
        let mut renamed = Cow::Borrowed(name);
        for (pattern, to) in &self.0 {
            if to.is_empty() && pattern.is_match(&renamed) {
                return None;
            }
            renamed = Cow::Owned(pattern.replace(&renamed, to).into_owned());
        }
        Some(renamed.into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::{KeyMap, Regex};

    #[test]
    fn rules_apply_one_after_another_and_an_empty_name_drops() {
        let rules = [
            ("^old\\.", "new."),
            ("position_ids$", ""),
            ("\\.layer\\.(\\d+)\\.", ".layers.$1."),
        ];
        let keys = KeyMap(
            rules
                .iter()
                .map(|(from, to)| (Regex::new(from).unwrap(), (*to).to_owned()))
                .collect(),
        );
        assert_eq!(
            keys.rename("old.layer.12.w").as_deref(),
            Some("new.layers.12.w")
        );
        assert_eq!(keys.rename("old.position_ids"), None);
    }
}
