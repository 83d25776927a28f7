//! FFmpeg: the only folder that knows it. What it says (`log`), its names and time bases as ours
//! (`names`), files opened (`open`) and read packet by packet (`demux`), what its parser knows of a
//! packet (`parser`), what a file
//! says of its video (`describe`), decoding (`decode`), pictures scaled (`scale`) and turned to
//! upright RGB (`convert`), and mp4 files written (`write`).
//!
//! What FFmpeg does silently is made explicit here: the colour matrix and range
//! are set on the scaler, rotation and pixel shape are applied, a stop request
//! reaches into blocking reads, and its log goes to the error messages of this
//! program instead of the terminal.
#![allow(unsafe_code)]

mod log;

mod names;

mod open;

mod demux;

mod describe;

mod parser;

mod decode;

mod scale;

mod convert;

mod write;

pub use self::{
    convert::Converter,
    decode::{Decoder, PictureTimes, Received, Threads},
    demux::{Demuxer, Packet, Read},
    log::{damaged_packets, said_truncated},
    parser::Parser,
    write::VideoWriter,
};
