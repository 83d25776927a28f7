//! FFmpeg's parser of one stream: the type of a packet's first picture, for codecs whose headers need
//! their parameter sets to be read.

use std::{
    ffi::c_int,
    ptr::{self, NonNull},
};

use ffmpeg_next::{self as av, ffi};

use super::demux::{Body, Demuxer, Packet};
use crate::sources::packet_headers::{Parity, ParsedPicture};

/// Parses a stream's packets in storage order.
pub struct Parser {
    parser: NonNull<ffi::AVCodecParserContext>,
    /// Holds the stream's parameter sets for the parser.
    context: av::codec::Context,
}

impl Parser {
    /// The parser of the demuxer's stream; `None` where FFmpeg has none.
    pub fn open(demuxer: &Demuxer) -> Option<Self> {
        let Body::Container(container) = &demuxer.body else {
            return None;
        };
        let parameters = container.stream().ok()?.parameters();
        let id: ffi::AVCodecID = parameters.id().into();
        let context = av::codec::Context::from_parameters(parameters).ok()?;
        // SAFETY: takes any number and returns null if there is no parser for it.
        let parser = NonNull::new(unsafe { ffi::av_parser_init(id as c_int) })?;
        let mut parser = Self { parser, context };
        // SAFETY: the parser is not shared. Packets are whole pictures, which it must not join or split.
        unsafe { parser.parser.as_mut().flags |= ffi::PARSER_FLAG_COMPLETE_FRAMES as c_int };
        Some(parser)
    }

    /// What the next packet is.
    pub fn read(&mut self, packet: &Packet) -> ParsedPicture {
        let data = packet.data();
        let (mut out, mut out_size) = (ptr::null_mut(), 0);
        let none = ffi::AV_NOPTS_VALUE;
        // SAFETY: parser and context are alive and ours; FFmpeg's packets have the padding behind
        // their bytes that parsers may read. What `out` points to is not used.
        unsafe {
            ffi::av_parser_parse2(
                self.parser.as_ptr(),
                self.context.as_mut_ptr(),
                &mut out,
                &mut out_size,
                data.as_ptr(),
                data.len() as c_int,
                none,
                none,
                0,
            );
        }
        // SAFETY: the parser is alive; these are fields of it.
        let (structure, key) = unsafe {
            let parser = self.parser.as_ref();
            (parser.picture_structure, parser.key_frame)
        };
        use ffi::AVPictureStructure::{
            AV_PICTURE_STRUCTURE_BOTTOM_FIELD, AV_PICTURE_STRUCTURE_TOP_FIELD,
        };
        let field = match structure {
            AV_PICTURE_STRUCTURE_TOP_FIELD => Some(Parity::Top),
            AV_PICTURE_STRUCTURE_BOTTOM_FIELD => Some(Parity::Bottom),
            _ => None,
        };
        ParsedPicture {
            field,
            is_start: key == 1,
        }
    }
}

impl Drop for Parser {
    fn drop(&mut self) {
        // SAFETY: the parser was made by `av_parser_init` and is closed once.
        unsafe { ffi::av_parser_close(self.parser.as_ptr()) };
    }
}
