//! FFmpeg's names and time bases as ours.

use std::{
    ffi::{CStr, c_char, c_int},
    ptr,
};

use ffmpeg_next::{self as av, ffi};

use crate::time::TimeBase;

pub(super) fn time_base(ratio: av::Rational) -> Option<TimeBase> {
    TimeBase::new(
        u32::try_from(ratio.numerator()).ok()?,
        u32::try_from(ratio.denominator()).ok()?,
    )
}

pub(super) fn codec_name(id: ffi::AVCodecID) -> String {
    // SAFETY: returns a static string for every id.
    unsafe { static_text(ffi::avcodec_get_name(id)) }
}

pub(super) fn pixel_format_name(format: c_int) -> String {
    // SAFETY: takes any descriptor, an unknown one gives null; the pointer is to a static structure.
    unsafe {
        let mut iterator = ptr::null();
        loop {
            iterator = ffi::av_pix_fmt_desc_next(iterator);
            if iterator.is_null() {
                return "unknown".into();
            }
            if ffi::av_pix_fmt_desc_get_id(iterator) as c_int == format {
                return static_text((*iterator).name);
            }
        }
    }
}

/// # Safety
/// `text` is null or a NUL-terminated string with static lifetime.
pub(super) unsafe fn static_text(text: *const c_char) -> String {
    if text.is_null() {
        return "unknown".into();
    }
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(text).to_string_lossy().into_owned() }
}
