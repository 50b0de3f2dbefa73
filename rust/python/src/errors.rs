//! The border where Rust errors become the exceptions of `cbin_nn.errors`, each with its stable slug.

use cbin_nn_deploy::DeployError;
use cbin_nn_model::writer::BuildError;
use cbin_nn_model::{FormatError, RunError};
use pyo3::prelude::*;

mod python {
    pyo3::import_exception!(cbin_nn.errors, ConversionError);
    pyo3::import_exception!(cbin_nn.errors, InvalidArgument);
    pyo3::import_exception!(cbin_nn.errors, ModelFileError);
}

/// A model file that its reader rejects.
pub(crate) fn model_file(error: FormatError) -> PyErr {
    python::ModelFileError::new_err((error.slug(), error.to_string()))
}

/// A network that can't be written as a model.
pub(crate) fn build(error: BuildError) -> PyErr {
    let slug = match &error {
        BuildError::Argument { .. } => "bad-layer-argument",
        BuildError::UnknownInput { .. } => "unknown-input",
        BuildError::InputType { .. } => "input-type",
        BuildError::Window { .. } => "window-too-large",
        BuildError::OperatorCount { .. } => "operator-count",
        BuildError::TooLarge { .. } => "model-too-large",
        _ => "internal-error",
    };
    python::ConversionError::new_err((slug, error.to_string()))
}

/// A run that was refused.
pub(crate) fn run(error: RunError) -> PyErr {
    python::InvalidArgument::new_err(("bad-run-argument", error.to_string()))
}

/// An argument with a wrong value.
pub(crate) fn argument(slug: &'static str, message: String) -> PyErr {
    python::InvalidArgument::new_err((slug, message))
}

/// A board that failed, with the whole chain of causes on one line. `cbin_nn.errors` chooses the class by
/// the slug.
pub(crate) fn board(error: DeployError) -> PyErr {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !message.contains(&cause_text) {
            message = format!("{message}: {cause_text}");
        }
        source = cause.source();
    }
    let message = message.replace('\n', " ");
    Python::attach(|py| {
        let made = py
            .import("cbin_nn.errors")
            .and_then(|module| module.call_method1("board_error", (error.slug(), message)));
        made.map_or_else(|failure| failure, PyErr::from_value)
    })
}
