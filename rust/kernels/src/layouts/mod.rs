/*!
Layouts of weights, one a file: where each weight lies, the ways from and to the canonical layout, and what is checked.

The canonical layout is that of activations: packed as a pixel of the input is, `[output channels][taps][words]`. A layout
other than this one exists for the method of the same name.
*/

pub mod by_output_channel;
pub mod byte_mask;
pub mod pixel_sums;
