//! Files of JSON lines as an endless sequence of examples with random access; invalid lines are
//! counted and reported.

use std::{
    collections::HashSet,
    fs::File,
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use longreel_models::{
    file_name::FileName,
    training::data::example::{Example, ExampleRules},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    error::{Context, Error, Kind, Result},
    flow::StepContent,
    reel::ReelReader,
};

/// Maximum bytes of a line: a million codes.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Invalid lines that are reported by name.
const NAMED: usize = 5;

/// One line of a file.
#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    /// Line number from 0; upstream chooses among alternatives by it.
    line: u64,
    start: u64,
    bytes: u64,
}

/// The lines of files, in order or shuffled in every pass.
pub struct Dataset {
    files: Vec<(PathBuf, File)>,
    places: Vec<Place>,
    order: Order,
    /// Numbers of the invalid lines.
    skipped: HashSet<usize>,
    named: Vec<String>,
}

impl Dataset {
    /// Indexes the lines of `paths`, with 32 bytes of memory each.
    ///
    /// # Errors
    /// `NotFound` or `Io` for a file that cannot be read, `BadInput` where there is no line.
    pub fn open(paths: &[PathBuf], shuffle: Option<u64>) -> Result<Self> {
        let (mut files, mut places) = (Vec::new(), Vec::new());
        for (file, path) in paths.iter().enumerate() {
            let doing = || format!("read the lines of {}", path.shown());
            let opened = File::open(path).doing(doing)?;
            places.extend(lines_of(file, &opened).doing(doing)?);
            files.push((path.clone(), opened));
        }
        if places.is_empty() {
            return Err(Error::new(
                Kind::BadInput,
                "the files have no line, expected at least one",
            ));
        }
        if u32::try_from(places.len()).is_err() {
            let message = format!(
                "the files have {} lines, expected at most {}",
                places.len(),
                u32::MAX
            );
            return Err(Error::new(Kind::TooLarge, message));
        }
        Ok(Self {
            files,
            places,
            order: Order::new(shuffle),
            skipped: HashSet::new(),
            named: Vec::new(),
        })
    }

    /// Number of lines of one pass.
    pub fn n_lines(&self) -> usize {
        self.places.len()
    }

    /// The number of invalid lines so far, and the first few of them with the reason.
    pub fn skipped(&self) -> (usize, &[String]) {
        (self.skipped.len(), &self.named)
    }

    /// The first valid example at or after index `number` of the endless sequence, and the index after it.
    ///
    /// # Errors
    /// `BadInput` when a whole pass has no valid example, with the reason for the first line.
    pub fn example(&mut self, mut number: u64, rules: &ExampleRules) -> Result<(Example, u64)> {
        for _ in 0..self.places.len() {
            let at = self.order.at(number, self.places.len());
            number += 1;
            let line = self.line(at)?;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match self.example_of(&line, at, rules) {
                Ok(example) => return Ok((example, number)),
                Err(error) => self.skip(at, &error),
            }
        }
        let why = self
            .named
            .first()
            .map_or("all lines are empty", String::as_str);
        let message = format!("no line is an example: {why}");
        Err(Error::new(Kind::BadInput, message))
    }

    /// The example of a line; reels that it names are relative to its file.
    fn example_of(&self, line: &[u8], at: usize, rules: &ExampleRules) -> Result<Example> {
        let place = self.places[at];
        let folder = self.files[place.file].0.parent().unwrap_or(Path::new(""));
        let beside = |path: &Path| (rules.open_codes)(&folder.join(path));
        let rules = ExampleRules {
            open_codes: &beside,
            fields: rules.fields.clone(),
            ..*rules
        };
        let line = std::str::from_utf8(line)
            .map_err(|e| Error::with_source(Kind::BadInput, "it is not valid UTF-8", e))?;
        rules.example(line, place.line)
    }

    /// Marks the example at index `number` as too long: it has `tokens` tokens, a row holds `seq_length` and one.
    pub fn skip_long(&mut self, number: u64, tokens: usize, seq_length: usize) {
        let message = format!(
            "it has {tokens} tokens, expected at most {}",
            seq_length + 1
        );
        let at = self.order.at(number, self.places.len());
        self.skip(at, &Error::new(Kind::TooLarge, message));
    }

    /// Marks line `at` as invalid; it recurs in every pass, and is counted and reported once.
    fn skip(&mut self, at: usize, error: &Error) {
        let place = self.places[at];
        if self.skipped.insert(at) && self.named.len() < NAMED {
            let path = self.files[place.file].0.shown();
            self.named
                .push(format!("{path}, line {}: {error}", place.line + 1));
        }
    }

    fn line(&self, at: usize) -> Result<Vec<u8>> {
        let place = self.places[at];
        let (path, file) = &self.files[place.file];
        let mut line = vec![0; place.bytes as usize];
        file.read_exact_at(&mut line, place.start)
            .doing(|| format!("read {}, line {}", path.shown(), place.line + 1))?;
        Ok(line)
    }
}

fn lines_of(file: usize, opened: &File) -> Result<Vec<Place>> {
    let mut reader = BufReader::with_capacity(1 << 20, opened);
    let (mut places, mut start, mut line) = (Vec::new(), 0, 0);
    loop {
        let bytes = skip_line(&mut reader)?;
        if bytes == 0 {
            return Ok(places);
        }
        if bytes > LINE_BYTES_MAX {
            let message = format!(
                "line {} has {bytes} bytes, expected at most {LINE_BYTES_MAX}",
                line + 1
            );
            return Err(Error::new(Kind::TooLarge, message));
        }
        places.push(Place {
            file,
            line,
            start,
            bytes,
        });
        start += bytes;
        line += 1;
    }
}

/// Bytes of the next line with its line end; 0 at the end of the file.
fn skip_line(reader: &mut impl BufRead) -> Result<u64> {
    let mut bytes = 0;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(bytes);
        }
        let end = buffer.iter().position(|&b| b == b'\n');
        let n = end.map_or(buffer.len(), |end| end + 1);
        reader.consume(n);
        bytes += n as u64;
        if end.is_some() {
            return Ok(bytes);
        }
    }
}

/// An endless sequence of permutations of the numbers below `n`, with random access.
#[derive(Debug)]
pub struct Order {
    seed: Option<u64>,
    /// The pass that `numbers` belongs to.
    pass: Option<u64>,
    numbers: Vec<u32>,
}

impl Order {
    /// Shuffled in every pass with a seed; in order without one.
    pub fn new(seed: Option<u64>) -> Self {
        Self {
            seed,
            pass: None,
            numbers: Vec::new(),
        }
    }

    /// The number at index `place` of the sequence; `n` must be equal in all calls.
    pub fn at(&mut self, place: u64, n: usize) -> usize {
        let (pass, at) = (place / n as u64, (place % n as u64) as usize);
        let Some(seed) = self.seed else {
            return at;
        };
        if self.pass != Some(pass) {
            self.numbers = shuffled(n as u32, seed, pass);
            self.pass = Some(pass);
        }
        self.numbers[at] as usize
    }
}

/// The numbers below `n`, shuffled for pass `pass` (Fisher and Yates, 1938).
fn shuffled(n: u32, seed: u64, pass: u64) -> Vec<u32> {
    let mut numbers = ChaCha8Rng::seed_from_u64(seed);
    numbers.set_stream(pass);
    let mut order: Vec<u32> = (0..n).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, numbers.random_range(0..=i));
    }
    order
}

/// The codes of all frames of the reel at `path`.
///
/// # Errors
/// `BadInput` for a reel without codes, or with codes of another codebook.
pub fn codes_of_reel(path: &Path, grid: usize, codebook: usize) -> Result<Vec<u32>> {
    let doing = || format!("read the reel {}", path.shown());
    let mut reel = ReelReader::open(path)?;
    reel.header().check_codes(grid, codebook).doing(doing)?;
    let mut codes = Vec::new();
    while let Some(record) = reel.next_step().doing(doing)? {
        if let StepContent::Codes(of_frame) = record.step.content {
            codes.extend(of_frame);
        }
    }
    Ok(codes)
}
