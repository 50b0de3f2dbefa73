/*!
`cbin_nn._native`: the binding between the Python package and the Rust crates.

Every function here does four things: extract, validate, detach from the interpreter, call. No algorithm lives
here; the hand-kept type stub is `python/cbin_nn/_native.pyi`.
*/

use pyo3::prelude::*;

mod boards;
mod build;
mod errors;
mod model;

#[pymodule]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    #[pymodule_export]
    use crate::boards::{BoardRow, BoardRun, BoardSession, ProbeRow, list_boards, list_probes};
    #[pymodule_export]
    use crate::build::build_model;
    #[pymodule_export]
    use crate::model::{Model, OperatorInfo};
}
