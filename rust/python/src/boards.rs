//! Boards: list them and their probes, open one, flash it, run a model on it.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use cbin_nn_deploy::{
    BenchRun, Counter, DeployError, Event, Loaded, Options, Progress, Session, Step, board, boards, probes,
    run_images,
};
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

/// One debug probe.
#[pyclass(frozen, get_all, module = "cbin_nn._native")]
pub(crate) struct ProbeRow {
    selector: String,
    name: String,
    accessible: bool,
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

    /// "instructions" or "cycles"; None where the counts mean nothing: a core without a counter, or a
    /// simulator that takes itself for silicon.
    #[getter]
    fn unit(&self) -> Option<&'static str> {
        match self.run.info.counter {
            Counter::Instructions => Some("instructions"),
            Counter::Cycles if !self.run.simulated => Some("cycles"),
            Counter::Cycles | Counter::Absent => None,
        }
    }

    #[getter]
    fn simulated(&self) -> bool {
        self.run.simulated
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

/// All debug probes.
#[pyfunction]
pub(crate) fn list_probes(py: Python<'_>) -> PyResult<Vec<ProbeRow>> {
    let found = py.detach(probes).map_err(errors::board)?;
    let row = |probe: cbin_nn_deploy::ProbeInfo| ProbeRow {
        selector: probe.selector,
        name: probe.name,
        accessible: probe.accessible,
    };
    Ok(found.into_iter().map(row).collect())
}

/// An open board. `progress(step, operation, done, total)` of a method is called with the steps "runner" and
/// "model" while the board is flashed, and with "images" between images; what it raises ends the call, as
/// Ctrl-C does.
#[pyclass(frozen, module = "cbin_nn._native")]
pub(crate) struct BoardSession {
    session: Mutex<Option<Session>>,
}

#[pymethods]
impl BoardSession {
    /// Opens the board `name` with the image `runner`. With `data`, a model, checks first that the two fit,
    /// and loads it.
    #[new]
    #[pyo3(signature = (
        name, runner, data=None, *, probe=None, speed_khz=None, under_reset=false, timeout_s=None, progress=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        py: Python<'_>,
        name: &str,
        runner: PathBuf,
        data: Option<Vec<u8>>,
        probe: Option<String>,
        speed_khz: Option<u32>,
        under_reset: bool,
        timeout_s: Option<f64>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let board = board(name).map_err(errors::board)?;
        let mut options = Options::default();
        (options.probe, options.probe_khz, options.under_reset) = (probe, speed_khz, under_reset);
        if let Some(seconds) = timeout_s {
            let timeout = Duration::try_from_secs_f64(seconds).map_err(|_| {
                errors::argument("bad-timeout", format!("`timeout` is {seconds} seconds: not a duration"))
            })?;
            (options.start_timeout, options.reply_timeout, options.run_timeout) = (timeout, timeout, timeout);
            options.probe_timeout = timeout;
        }
        let session = watched(py, progress.as_ref(), 0, |watch| {
            let watch = &mut |event: Option<Event>| watch(event.map_or(Progress::Images(0), Progress::Flash));
            match data {
                Some(data) => Session::open_for(board, &runner, &data, options, watch),
                None => Session::open(board, &runner, options, watch),
            }
        })?;
        Ok(Self { session: Mutex::new(Some(session)) })
    }

    /// Writes the model `data` to the board, unless it is there, and opens it in place of the last one.
    #[pyo3(signature = (data, progress=None))]
    fn load(&self, py: Python<'_>, data: Vec<u8>, progress: Option<Py<PyAny>>) -> PyResult<()> {
        watched(py, progress.as_ref(), 0, |watch| {
            let watch = &mut |event: Option<Event>| watch(event.map_or(Progress::Images(0), Progress::Flash));
            self.with(|session| session.load_model(&data, watch).map(drop))
        })
    }

    /// Opens the model that the board holds; its bytes.
    fn open_stored<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let data = watched(py, None, 0, |watch| {
            let watch = &mut |_| watch(Progress::Images(0));
            self.with(|session| session.open_stored(watch))
        })?;
        Ok(PyBytes::new(py, &data))
    }

    /// Runs `images`, one row of bytes an image, through the open model.
    #[pyo3(signature = (images, progress=None))]
    fn run(
        &self,
        py: Python<'_>,
        images: PyReadonlyArray2<'_, u8>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<BoardRun> {
        let images = images.as_array();
        let count = images.nrows();
        let images = images.as_standard_layout();
        let images = images.as_slice().unwrap_or(&[]);
        let run = watched(py, progress.as_ref(), count, |watch| {
            self.with(|session| run_images(session, images, count, watch))
        })?;
        Ok(BoardRun { run })
    }

    /// Ends the session: lets go of the probe, ends the emulator.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.lock().map(|mut session| drop(session.take()))).map_err(errors::board)
    }

    /// "written" or "unchanged": what the last load did to the board's flash; None before any.
    #[getter]
    fn loaded(&self) -> PyResult<Option<&'static str>> {
        let loaded = self.with(|session| Ok(session.loaded())).map_err(errors::board)?;
        Ok(loaded.map(|loaded| if loaded == Loaded::Unchanged { "unchanged" } else { "written" }))
    }

    /// Whether the board's figures are a simulator's.
    #[getter]
    fn simulated(&self) -> PyResult<bool> {
        self.with(|session| Ok(session.simulated())).map_err(errors::board)
    }

    /// Version of the runner on the board.
    #[getter]
    fn runner_version(&self) -> PyResult<String> {
        self.with(|session| Ok(session.info().runner_version.clone())).map_err(errors::board)
    }
}

impl BoardSession {
    /// The session, if no other call has it. Waiting for that call would be a deadlock where it is the one
    /// whose callback asks, or needs the interpreter that this one holds.
    fn lock(&self) -> Result<MutexGuard<'_, Option<Session>>, DeployError> {
        match self.session.try_lock() {
            Ok(session) => Ok(session),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(DeployError::Busy),
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Session) -> Result<T, DeployError>) -> Result<T, DeployError> {
        self.lock()?.as_mut().map_or(Err(DeployError::Closed), work)
    }
}

/// Detaches and calls `work` with a watch that tells `progress` and that Ctrl-C ends. An exception raised in
/// the middle waits until the board's part has been wound up.
fn watched<T: Send>(
    py: Python<'_>,
    progress: Option<&Py<PyAny>>,
    count: usize,
    work: impl FnOnce(&mut dyn FnMut(Progress) -> ControlFlow<()>) -> Result<T, DeployError> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let result = py.detach(|| {
        work(&mut |news| {
            let told = Python::attach(|py| {
                py.check_signals()?;
                let Some(progress) = progress else { return Ok(()) };
                match news {
                    Progress::Flash(Event { step, operation, done, total, .. }) => {
                        let step = if step == Step::FlashRunner { "runner" } else { "model" };
                        progress.call1(py, (step, operation.name(), done, total)).map(drop)
                    }
                    Progress::Images(done) if count > 0 => {
                        progress.call1(py, ("images", "run", done, count)).map(drop)
                    }
                    _ => Ok(()),
                }
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
        (None, result) => result.map_err(errors::board),
    }
}
