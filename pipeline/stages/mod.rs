//! The four verbs.
