/*!
Layouts of weights, one a file: where each weight lies, the ways from and to the canonical layout, what is checked, and what a
layer takes on a board with its weights laid out so.

Costs are fitted to instructions on an emulated Cortex-M7 (`make bench`), and stand beside the layouts so that whoever changes
a kernel finds what to fit anew. Whoever writes a model chooses by them.

The canonical layout is that of activations: packed as a pixel of the input is, `[output channels][taps][words]`. A layout
other than this one exists for the method of the same name.
*/

pub mod by_output_channel;
pub mod byte_mask;
pub mod pixel_sums;
