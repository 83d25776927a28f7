//! Everything that calls FFmpeg: its log (`log`), its names and time bases converted to this program's
//! (`names`), files opened (`open`) and read packet by packet (`demux`), its parser of packet headers
//! (`parser`), the properties of a file's
//! video (`describe`), decoding (`decode`), scaling of pictures (`scale`), their conversion to
//! upright RGB (`convert`), and writing of mp4 files (`write`).
//!
//! FFmpeg's implicit behaviour is made explicit here: the colour matrix and range
//! are set on the scaler, rotation and pixel aspect ratio are applied, a stop request
//! interrupts blocking reads, and its log goes to the error messages of this
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
    decode::{PictureTimes, Received, StreamDecoder, Threads},
    demux::{Demuxer, Packet, Read},
    log::{damaged_packets, said_truncated},
    parser::Parser,
    write::VideoWriter,
};
