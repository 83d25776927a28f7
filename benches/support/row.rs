//! A measured row, for people and for a file of results.

use std::{fs::OpenOptions, io::Write};

use serde_json::Value;

/// Prints `row`, and puts it behind the others in the file `out`, where one is named.
pub fn tell(row: &Value, out: Option<&str>) {
    println!("{row:#}");
    if let Some(out) = out {
        let mut options = OpenOptions::new();
        let mut file = options.append(true).create(true).open(out).unwrap();
        writeln!(file, "{row}").unwrap();
    }
}
