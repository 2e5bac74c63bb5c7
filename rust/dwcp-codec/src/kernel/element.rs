//! Little-endian unsigned elements of 1, 2, 4 and 8 bytes, and what is done to them.

/// One element of a block.
pub(crate) trait Element: Copy + Eq + Default {
    /// Its width in bytes.
    const WIDTH: usize;
    /// Reads the element at the start of `bytes`, which has as many.
    fn read(bytes: &[u8]) -> Self;
    /// Writes the element to the start of `bytes`, which has room for it.
    fn write(self, bytes: &mut [u8]);
    /// The bits that differ.
    fn xor(self, other: Self) -> Self;
    /// The zigzag of `self - other`: small when they are near each other, 0 only when they are equal.
    fn zigzag_from(self, other: Self) -> Self;
    /// The inverse of [`Element::zigzag_from`]: the element whose zigzag from `other` is `self`.
    fn zigzag_onto(self, other: Self) -> Self;
    /// The zigzag that undoes `self`: that of the negated difference.
    #[inline(always)]
    fn reversed_zigzag(self) -> Self {
        let zero = Self::default();
        zero.zigzag_from(self.zigzag_onto(zero))
    }
    /// Rotated left by one bit.
    fn rotate(self) -> Self;
    /// Rotated right by one bit.
    fn rotate_back(self) -> Self;
    /// Byte `position`, counted from the lowest.
    fn byte(self, position: usize) -> u8;
    /// The element of the lowest byte `byte`, shifted to `position`.
    fn of_byte(byte: u8, position: usize) -> Self;
    /// The same number.
    fn widen(self) -> u64;
    /// The low bits of `wide`.
    fn narrow(wide: u64) -> Self;
}

/// Evaluates an expression with a name for the element of so many bytes: 1, 2, 4 or 8.
macro_rules! with_element {
    ($width:expr, $element:ident => $value:expr) => {
        match $width {
            2 => {
                type $element = u16;
                $value
            }
            4 => {
                type $element = u32;
                $value
            }
            8 => {
                type $element = u64;
                $value
            }
            _ => {
                type $element = u8;
                $value
            }
        }
    };
}
pub(crate) use with_element;

macro_rules! element {
    ($unsigned:ty, $signed:ty) => {
        impl Element for $unsigned {
            const WIDTH: usize = size_of::<$unsigned>();

            #[inline(always)]
            fn read(bytes: &[u8]) -> Self {
                let mut element = [0; size_of::<$unsigned>()];
                element.copy_from_slice(&bytes[..size_of::<$unsigned>()]);
                <$unsigned>::from_le_bytes(element)
            }

            #[inline(always)]
            fn write(self, bytes: &mut [u8]) {
                bytes[..size_of::<$unsigned>()].copy_from_slice(&self.to_le_bytes());
            }

            #[inline(always)]
            fn xor(self, other: Self) -> Self {
                self ^ other
            }

            #[inline(always)]
            fn zigzag_from(self, other: Self) -> Self {
                let difference = self.wrapping_sub(other);
                (difference << 1) ^ ((difference as $signed >> (<$unsigned>::BITS - 1)) as $unsigned)
            }

            #[inline(always)]
            fn zigzag_onto(self, other: Self) -> Self {
                other.wrapping_add((self >> 1) ^ (self & 1).wrapping_neg())
            }

            #[inline(always)]
            fn rotate(self) -> Self {
                self.rotate_left(1)
            }

            #[inline(always)]
            fn rotate_back(self) -> Self {
                self.rotate_right(1)
            }

            #[inline(always)]
            fn byte(self, position: usize) -> u8 {
                (self >> (8 * position)) as u8
            }

            #[inline(always)]
            fn of_byte(byte: u8, position: usize) -> Self {
                <$unsigned>::from(byte) << (8 * position)
            }

            #[inline(always)]
            fn widen(self) -> u64 {
                u64::from(self)
            }

            #[inline(always)]
            fn narrow(wide: u64) -> Self {
                wide as $unsigned
            }
        }
    };
}

element!(u8, i8);
element!(u16, i16);
element!(u32, i32);
element!(u64, i64);
