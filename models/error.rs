//! One error type for the whole program: a kind for programs, a sentence for
//! people, and the chain of what was being done when it happened.
//!
//! Messages are lowercase, carry no full stop, and say what was found and what
//! was expected. Library errors (candle, serde, I/O) are wrapped at the place
//! that knows what was being read or computed, with [`Context::doing`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, as far as a program needs to know.
///
/// The command line maps kinds to exit codes: `Usage`, `BadInput`, `NotFound` and
/// `TooLarge` are 2, `Interrupted` is 130 (75 where SIGTERM stopped work that can
/// go on), everything else is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// The command line or a configuration value is wrong.
    Usage,
    /// A file from outside (video, checkpoint, tokenizer, config) cannot be used.
    BadInput,
    /// A named thing is not there.
    NotFound,
    /// The request is well formed but does not fit: context, memory, disk budget.
    TooLarge,
    /// Reading or writing failed for a reason outside the file's content.
    Io,
    /// The hub or another network peer failed.
    Network,
    /// The user or another stage asked to stop.
    Interrupted,
    /// A tensor operation failed or gave a value that is not a number.
    Compute,
    /// A broken promise inside this program.
    Internal,
}

/// An error with its kind, its sentence, and what was being done, outermost first.
pub struct Error {
    kind: Kind,
    /// Innermost first; displayed in reverse.
    doing: Vec<String>,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            doing: Vec::new(),
            message: message.into(),
            source: None,
        }
    }

    /// An error of `kind` that says `message`, caused by `source`.
    pub fn with_source(
        kind: Kind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            source: Some(source.into()),
            ..Self::new(kind, message)
        }
    }

    /// The same error, with one more outer "what was being done".
    pub fn doing(mut self, what: impl Into<String>) -> Self {
        self.doing.push(what.into());
        self
    }

    /// What a program may branch on.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The innermost sentence, without what was being done.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for what in self.doing.iter().rev() {
            write!(f, "{what}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(source) = &self.source {
            // Tensor library errors print long backtraces after the first line.
            let text = source.to_string();
            write!(f, ": {}", text.lines().next().unwrap_or_default())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|s| s as &(dyn std::error::Error + 'static))
    }
}

impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Self::with_source(Kind::Compute, "tensor operation failed", source.to_string())
    }
}

/// Names what was being done when a result turned out to be an error.
pub trait Context<T> {
    /// Wraps the error with `what()`, e.g. `encode frame at 00:41:07.250`.
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().doing(what()))
    }
}

impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let (kind, message) = match source.kind() {
            ErrorKind::NotFound => (Kind::NotFound, "no such file or directory"),
            ErrorKind::NotADirectory => (
                Kind::NotFound,
                "a file stands where a directory was expected",
            ),
            ErrorKind::AlreadyExists => {
                (Kind::Usage, "something else of this name is there already")
            }
            ErrorKind::IsADirectory => (Kind::BadInput, "it is a directory, expected a file"),
            ErrorKind::PermissionDenied => (Kind::Io, "permission denied"),
            ErrorKind::StorageFull => (Kind::Io, "no space left on the device"),
            ErrorKind::UnexpectedEof => (Kind::BadInput, "the file ends too early"),
            ErrorKind::InvalidData => {
                return Self::with_source(Kind::BadInput, "the content cannot be read", source);
            }
            _ => return Self::with_source(Kind::Io, "input/output failed", source),
        };
        // The system's own sentence would say the same again.
        Self::new(kind, message)
    }
}
