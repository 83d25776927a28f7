//! swscale: converts pictures to another size and pixel format.

use std::{
    ffi::{CStr, c_int},
    ptr,
};

use ffmpeg_next::{self as av, ffi};

use super::log::failed;
use crate::error::{Error, Kind, Result};

/// Scaling and chroma interpolation, as in a plain `ffmpeg -i`.
const SCALER_FLAGS: c_int = ffi::SWS_BICUBIC;

/// swscale, set up for one [`Look`](super::convert).
pub(super) struct Scaler(ptr::NonNull<ffi::SwsContext>);

// SAFETY: the context is not tied to the thread that created it, and is never shared.
unsafe impl Send for Scaler {}

impl Scaler {
    /// Converts from one width, height and pixel format to another. `matrix` and `full_range` apply to the YUV side.
    pub(super) fn new(
        from: (c_int, c_int, c_int),
        to: (c_int, c_int, c_int),
        matrix: c_int,
        full_range: bool,
    ) -> Result<Self> {
        // SAFETY: allocates or gives null.
        let context = ptr::NonNull::new(unsafe { ffi::sws_alloc_context() })
            .ok_or_else(|| Error::new(Kind::TooLarge, "no memory for a scaler"))?;
        let mut scaler = Self(context);
        let options: [(&CStr, i64); 7] = [
            (c"srcw", from.0.into()),
            (c"srch", from.1.into()),
            (c"src_format", from.2.into()),
            (c"dstw", to.0.into()),
            (c"dsth", to.1.into()),
            (c"dst_format", to.2.into()),
            (c"sws_flags", SCALER_FLAGS.into()),
        ];
        for (name, value) in options {
            scaler.set(name, value)?;
        }
        // In 4:2:0 chroma lies between two rows; swscale only accounts for it if told, as FFmpeg's scale filter does.
        let yuv420 = ffi::AVPixelFormat::AV_PIX_FMT_YUV420P as c_int;
        if from.2 == yuv420 {
            scaler.set(c"src_v_chr_pos", 128)?;
        }
        if to.2 == yuv420 {
            scaler.set(c"dst_v_chr_pos", 128)?;
        }
        scaler.init()?;
        scaler.set_colors(matrix, full_range);
        Ok(scaler)
    }

    fn set(&mut self, name: &CStr, value: i64) -> Result<()> {
        // SAFETY: the context is alive and the name ends in NUL.
        let code = unsafe { ffi::av_opt_set_int(self.0.as_ptr().cast(), name.as_ptr(), value, 0) };
        if code >= 0 {
            return Ok(());
        }
        Err(failed(
            Kind::BadInput,
            &format!("scaler option {}", name.to_string_lossy()),
            av::Error::from(code),
        ))
    }

    fn set_colors(&mut self, matrix: c_int, full_range: bool) {
        let unity = 1 << 16;
        let range = c_int::from(full_range);
        // SAFETY: the context is alive; the table is static. A picture without a matrix (RGB, gray) is refused
        // with a negative code, and needs none.
        unsafe {
            let table = ffi::sws_getCoefficients(matrix);
            ffi::sws_setColorspaceDetails(
                self.0.as_ptr(),
                table,
                range,
                table,
                range,
                0,
                unity,
                unity,
            );
        }
    }

    fn init(&mut self) -> Result<()> {
        // SAFETY: the context is alive and its options are set.
        let code =
            unsafe { ffi::sws_init_context(self.0.as_ptr(), ptr::null_mut(), ptr::null_mut()) };
        if code >= 0 {
            Ok(())
        } else {
            Err(failed(
                Kind::BadInput,
                "the picture cannot be converted",
                av::Error::from(code),
            ))
        }
    }

    /// Scales the whole of `from` into `to`.
    pub(super) fn run(&mut self, from: &av::frame::Video, to: &mut av::frame::Video) -> Result<()> {
        // SAFETY: both frames are alive and have the sizes and formats the context was made for
        // (`Converter` compares the look of every picture, and owns the output).
        let rows = unsafe {
            let (source, target) = (from.as_ptr(), to.as_mut_ptr());
            ffi::sws_scale(
                self.0.as_ptr(),
                (*source).data.as_ptr().cast(),
                (*source).linesize.as_ptr(),
                0,
                (*source).height,
                (*target).data.as_ptr(),
                (*target).linesize.as_ptr(),
            )
        };
        if rows >= 0 {
            Ok(())
        } else {
            Err(failed(
                Kind::BadInput,
                "the picture cannot be converted",
                av::Error::from(rows),
            ))
        }
    }
}

impl Drop for Scaler {
    fn drop(&mut self) {
        // SAFETY: the context is ours and not used again.
        unsafe { ffi::sws_freeContext(self.0.as_ptr()) };
    }
}
