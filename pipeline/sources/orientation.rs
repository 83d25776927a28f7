//! The eight orientations of a stored picture.

use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::flow::RgbImage;

/// Swap rows with columns first, then mirror.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Orientation {
    /// Rows become columns.
    pub transpose: bool,
    /// Then mirror left and right.
    pub flip_x: bool,
    /// Then mirror top and bottom.
    pub flip_y: bool,
}

impl Orientation {
    /// From a display matrix (`AVDisplayMatrix`, ISO 14496-12 section 6.2.2), of which
    /// `x' = a x + c y` and `y' = b x + d y` are the rotation part: `[a, b, _, c, d, _, ...]`.
    ///
    /// Angles other than multiples of 90 degrees are rounded to the nearest one.
    pub fn from_display_matrix(matrix: [i32; 9]) -> Self {
        let [a, b, _, c, d, ..] = matrix.map(i64::from);
        if a.abs() + d.abs() >= b.abs() + c.abs() {
            Self {
                transpose: false,
                flip_x: a < 0,
                flip_y: d < 0,
            }
        } else {
            Self {
                transpose: true,
                flip_x: c < 0,
                flip_y: b < 0,
            }
        }
    }

    /// From the number in EXIF's tag Orientation (Exif 2.32 section 4.6.4.1); upright for anything but 1 to 8.
    pub fn from_exif(number: u32) -> Self {
        let [transpose, flip_x, flip_y] = match number {
            2 => [false, true, false],
            3 => [false, true, true],
            4 => [false, false, true],
            5 => [true, false, false],
            6 => [true, true, false],
            7 => [true, true, true],
            8 => [true, false, true],
            _ => [false; 3],
        };
        Self {
            transpose,
            flip_x,
            flip_y,
        }
    }

    /// This orientation followed by `next`.
    pub fn then(self, next: Self) -> Self {
        let (flip_x, flip_y) = match next.transpose {
            true => (self.flip_y, self.flip_x),
            false => (self.flip_x, self.flip_y),
        };
        Self {
            transpose: self.transpose ^ next.transpose,
            flip_x: flip_x ^ next.flip_x,
            flip_y: flip_y ^ next.flip_y,
        }
    }

    /// Degrees clockwise: 0, 90, 180 or 270, after mirroring when [`Self::mirrored`].
    pub fn degrees(self) -> u32 {
        match (self.transpose, self.flip_x, self.flip_y) {
            (false, _, false) => 0,
            (false, _, true) => 180,
            (true, true, _) => 90,
            (true, false, _) => 270,
        }
    }

    /// Whether the picture is mirrored before it is rotated.
    pub fn mirrored(self) -> bool {
        self.transpose ^ self.flip_x ^ self.flip_y
    }

    /// The upright size of a stored `(width, height)`.
    pub fn size<T>(self, (width, height): (T, T)) -> (T, T) {
        if self.transpose {
            (height, width)
        } else {
            (width, height)
        }
    }

    /// The upright picture.
    pub fn apply(self, image: RgbImage) -> RgbImage {
        if self == Self::default() {
            return image;
        }
        let (width, height) = self.size((image.width, image.height));
        let mut data = Vec::with_capacity(image.data.len());
        for y in 0..height {
            let v = if self.flip_y { height - 1 - y } else { y };
            for x in 0..width {
                let u = if self.flip_x { width - 1 - x } else { x };
                let (column, row) = self.size((u, v));
                let at = (row * image.width + column) * 3;
                data.extend_from_slice(&image.data[at..at + 3]);
            }
        }
        RgbImage {
            width,
            height,
            data,
        }
    }
}

impl Serialize for Orientation {
    /// `{"degrees": 90, "mirrored": false}`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Orientation", 2)?;
        fields.serialize_field("degrees", &self.degrees())?;
        fields.serialize_field("mirrored", &self.mirrored())?;
        fields.end()
    }
}
