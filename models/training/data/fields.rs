//! The fields of an example, in LWM's notation: `[question],[vision],answer`.

use crate::error::{Error, Kind, Result};

/// One field of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The content.
    pub content: FieldContent,
    /// Whether its tokens are predicted; in `[brackets]` they are not.
    pub is_predicted: bool,
}

/// The content of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldContent {
    /// The token that begins a text: `<|bos|>`.
    Begin,
    /// The token that ends a text: `<|eos|>`.
    End,
    /// Codes of frames: any key whose name contains `vision`.
    Vision(String),
    /// Values of these keys, joined with spaces: `prompt+caption`.
    Text(Vec<String>),
}

/// Parses comma-separated fields.
///
/// # Errors
/// `BadInput` for a field without a name, or an unknown `<|mark|>`.
pub fn parse(fields: &str) -> Result<Vec<Field>> {
    fields.split(',').map(field).collect()
}

fn field(written: &str) -> Result<Field> {
    let inside = written
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    Ok(Field {
        content: content(inside.unwrap_or(written))?,
        is_predicted: inside.is_none(),
    })
}

fn content(name: &str) -> Result<FieldContent> {
    let keys = || name.split('+').map(str::to_owned).collect();
    match name {
        "<|bos|>" => Ok(FieldContent::Begin),
        "<|eos|>" => Ok(FieldContent::End),
        _ if name.starts_with("<|") => {
            let message = format!("the field is {name}, expected <|bos|>, <|eos|> or a key");
            Err(Error::new(Kind::BadInput, message))
        }
        _ if name.contains("vision") => Ok(FieldContent::Vision(name.to_owned())),
        _ if name.split('+').any(str::is_empty) => {
            let message = format!("the field {name:?} names no key");
            Err(Error::new(Kind::BadInput, message))
        }
        _ => Ok(FieldContent::Text(keys())),
    }
}

#[cfg(test)]
mod tests {
    use super::{FieldContent, parse};

    #[test]
    fn brackets_mark_unpredicted_fields_and_plus_joins_keys() {
        let fields = parse("<|bos|>,[prompt+caption],vision,<|eos|>").unwrap();
        let predicted: Vec<bool> = fields.iter().map(|f| f.is_predicted).collect();
        assert_eq!(predicted, [true, false, true, true]);
        assert_eq!(fields[0].content, FieldContent::Begin);
        assert_eq!(
            fields[1].content,
            FieldContent::Text(vec!["prompt".into(), "caption".into()])
        );
        assert_eq!(fields[2].content, FieldContent::Vision("vision".into()));
        assert_eq!(fields[3].content, FieldContent::End);
    }

    #[test]
    fn a_field_that_names_nothing_is_refused() {
        for (fields, expected) in [
            ("question,,answer", "names no key"),
            ("a+", "names no key"),
            ("<|pad|>", "expected <|bos|>, <|eos|> or a key"),
        ] {
            let error = parse(fields).unwrap_err().to_string();
            assert!(error.contains(expected), "{fields}: {error}");
        }
    }
}
