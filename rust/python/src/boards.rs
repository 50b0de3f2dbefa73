//! Boards: list them, run a model on one.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cbin_nn_deploy::{BenchRun, Counter, DeployError, Options, Session, Watch, bench, board, boards};
use numpy::PyReadonlyArray2;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors;

/// One row of the list of boards.
#[pyclass(frozen, get_all, module = "cbin_nn._native")]
pub(crate) struct BoardRow {
    name: &'static str,
    description: &'static str,
    core: &'static str,
    clock_hz: Option<u32>,
    needs: &'static str,
    simulated: bool,
}

/// What came back from a board. All sizes are in bytes.
#[pyclass(frozen, module = "cbin_nn._native")]
pub(crate) struct BoardRun {
    run: BenchRun,
}

#[pymethods]
impl BoardRun {
    /// The outputs' bytes, image after image.
    #[getter]
    fn outputs<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.run.outputs)
    }

    /// A count for each operator of each image, image after image.
    #[getter]
    fn counts(&self) -> Vec<u64> {
        self.run.counts.clone()
    }

    /// The sum over operators for each image.
    #[getter]
    fn totals(&self) -> Vec<u64> {
        self.run.totals.clone()
    }

    /// "instructions" or "cycles".
    #[getter]
    fn unit(&self) -> &'static str {
        match self.run.info.counter {
            Counter::Instructions => "instructions",
            Counter::Cycles => "cycles",
        }
    }

    #[getter]
    fn counter_resolution(&self) -> u32 {
        self.run.info.counter_resolution
    }

    #[getter]
    fn runner_version(&self) -> &str {
        &self.run.info.runner_version
    }

    #[getter]
    fn arena_bytes(&self) -> u32 {
        self.run.model.arena_bytes
    }

    #[getter]
    fn stack_bytes(&self) -> u32 {
        self.run.stack_bytes
    }

    #[getter]
    fn transport_bytes(&self) -> u32 {
        self.run.info.ram_transport_bytes
    }

    #[getter]
    fn other_bytes(&self) -> u32 {
        self.run.info.ram_other_bytes
    }

    #[getter]
    fn code_bytes(&self) -> u32 {
        self.run.info.code_bytes
    }

    #[getter]
    fn workspace_bytes(&self) -> u32 {
        self.run.info.workspace_bytes
    }
}

/// All boards.
#[pyfunction]
pub(crate) fn list_boards() -> Vec<BoardRow> {
    let row = |board: &cbin_nn_deploy::Board| BoardRow {
        name: board.name,
        description: board.description,
        core: board.core,
        clock_hz: board.clock_hz,
        needs: board.needs,
        simulated: board.simulated(),
    };
    boards().iter().map(row).collect()
}

/// Runs `images`, one row of bytes an image, through the model `data` on a board. `progress(done, total)` is
/// called between images; what it raises ends the run, as Ctrl-C does.
#[pyfunction]
#[pyo3(signature = (name, runner, data, images, progress, timeout_s))]
pub(crate) fn run_on_board(
    py: Python<'_>,
    name: &str,
    runner: PathBuf,
    data: Vec<u8>,
    images: PyReadonlyArray2<'_, u8>,
    progress: Option<Py<PyAny>>,
    timeout_s: Option<f64>,
) -> PyResult<BoardRun> {
    let board = board(name).map_err(errors::board)?;
    let mut options = Options::default();
    if let Some(seconds) = timeout_s {
        let timeout = Duration::try_from_secs_f64(seconds).map_err(|_| {
            errors::argument("bad-timeout", format!("`timeout` is {seconds} seconds: not a duration"))
        })?;
        (options.start_timeout, options.reply_timeout, options.run_timeout) = (timeout, timeout, timeout);
    }
    let images = images.as_array();
    let count = images.nrows();
    let images = images.as_standard_layout();
    let images = images.as_slice().unwrap_or(&[]);
    // An exception raised in the middle of a run waits here until the run has been wound up.
    let mut raised = None;
    let result = py.detach(|| {
        bench(board, &runner, &data, images, count, options, &mut |done, total| {
            let told = Python::attach(|py| {
                py.check_signals()?;
                progress.as_ref().map_or(Ok(()), |progress| progress.call1(py, (done, total)).map(drop))
            });
            match told {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    raised.get_or_insert(error);
                    ControlFlow::Break(())
                }
            }
        })
    });
    match (raised, result) {
        (Some(error), _) => Err(error),
        (None, result) => Ok(BoardRun { run: result.map_err(errors::board)? }),
    }
}

/// One open board for many models: starting an emulator costs more than most runs.
#[pyclass(frozen, module = "cbin_nn._native")]
pub(crate) struct BoardSession {
    session: Mutex<Session>,
}

#[pymethods]
impl BoardSession {
    /// Starts the board `name` with the image `runner`.
    #[new]
    fn new(py: Python<'_>, name: &str, runner: PathBuf) -> PyResult<Self> {
        let board = board(name).map_err(errors::board)?;
        let session = watched(py, |watch| Session::open(board, &runner, Options::default(), watch))?;
        Ok(Self { session: Mutex::new(session) })
    }

    /// Writes the model `data` to the board and opens it there, in place of the last one.
    fn load(&self, py: Python<'_>, data: Vec<u8>) -> PyResult<()> {
        watched(py, |watch| self.lock().load_model(&data, watch).map(drop))
    }

    /// Runs `images`, one row of bytes an image; the outputs' bytes, image after image.
    fn run<'py>(&self, py: Python<'py>, images: PyReadonlyArray2<'py, u8>) -> PyResult<Bound<'py, PyBytes>> {
        let images = images.as_array();
        let (count, bytes) = images.dim();
        let images = images.as_standard_layout();
        let images = images.as_slice().unwrap_or(&[]);
        let outputs = watched(py, |watch| {
            let mut session = self.lock();
            let mut outputs = Vec::new();
            for (index, image) in images.chunks_exact(bytes.max(1)).enumerate() {
                outputs.extend(session.run_image(image, index + 1, count, watch)?.output);
            }
            Ok(outputs)
        })?;
        Ok(PyBytes::new(py, &outputs))
    }
}

impl BoardSession {
    fn lock(&self) -> std::sync::MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Detaches and calls `work` with a watch that Ctrl-C ends.
fn watched<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(Watch<'_>) -> Result<T, DeployError> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let result = py.detach(|| {
        work(&mut || match Python::attach(|py| py.check_signals()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                raised.get_or_insert(error);
                ControlFlow::Break(())
            }
        })
    });
    match (raised, result) {
        (Some(error), _) => Err(error),
        (None, result) => result.map_err(errors::board),
    }
}
