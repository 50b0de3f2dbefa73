/*!
The optimized ways to run an operator. A method that serves one layout of weights has its name.

[`conv`] is the walk over pixels that convolutions share, compiled once; the others have walks of their own where a window is
not taken by itself.
*/

pub(crate) mod by_output_channel;
pub(crate) mod byte_mask;
pub(crate) mod byte_pairs;
pub(crate) mod bytes;
pub(crate) mod conv;
pub(crate) mod dense;
pub(crate) mod over_image;
pub(crate) mod pixel_sums;
