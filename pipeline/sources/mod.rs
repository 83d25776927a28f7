//! Files to frames: which frames (`sampler`), whether one shows something new (`change`),
//! a file's information (`info`), orientation (`orientation`), clocks that
//! restart (`splices`), pictures as Pillow decodes them (`pictures`), what packets say of
//! their pictures (`packet_headers`), the other codecs (`ffmpeg`), the times of frames
//! (`timeline`, `clock`), the first pass over a file (`survey`), the reader that joins them (`file`);
//! and one picture back to bytes (`png`), whole or not at all (`temporary`).

pub mod sampler;

pub mod change;

pub mod temporary;

pub mod orientation;

pub mod splices;

pub mod address;

pub mod boxes;

pub mod protection;

pub mod magic;

pub mod info;

pub mod pictures;

pub mod packet_headers;

pub mod timeline;

pub mod ffmpeg;

pub mod clock;

pub mod survey;

pub mod file;

pub mod png;
