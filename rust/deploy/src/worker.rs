//! A thread that owns the probe, so that no call of its library can hold the caller up for ever.
//!
//! A debug probe behind a dead network connection answers nothing, and the library waits for it without a
//! limit. So every call is a job for this thread, and the caller waits for the job with a limit: on
//! silence, not on time, since a flash may take as long as it goes on. A thread that is stuck is left
//! behind; the process stays usable, and the probe belongs to that thread until the process ends.
//!
//! A panic in the library ends its job and no more.

use std::{
    any::Any,
    io,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{Event, Watch, transport::TransportError};

/// How often the caller looks at its watch while it waits for a job.
const WATCH_EVERY: Duration = Duration::from_millis(50);
/// How long an ending worker may take to let go of the probe.
const CLOSING: Duration = Duration::from_secs(2);

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// What a job may tell while it works.
pub struct Reporter<'a>(&'a dyn Fn(Event));

impl Reporter<'_> {
    /// Passes an event on to the caller's watch.
    pub fn event(&self, event: Event) {
        (self.0)(event);
    }
}

/// What comes back from a job.
enum Message<T, E> {
    Event(Event),
    Done(Result<T, E>),
    Panicked(String),
}

/// The thread, and the state that it owns.
pub struct Worker<S> {
    jobs: Option<mpsc::Sender<Job<S>>>,
    thread: Option<JoinHandle<()>>,
    ended: mpsc::Receiver<()>,
    /// A job was given up: nothing more can be asked of this thread.
    stuck: Option<Duration>,
}

impl<S: Default + 'static> Worker<S> {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job<S>>();
        let (ending, ended) = mpsc::channel::<()>();
        let thread = thread::Builder::new().name("cbin-nn-probe".into()).spawn(move || {
            let mut state = S::default();
            for job in queue {
                job(&mut state);
            }
            // Letting go of the probe talks to it once more.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(state)));
            drop(ending);
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), ended, stuck: None })
    }

    /// Has a job done, and waits until it is, or until it has been silent for `silence`.
    ///
    /// What the watch says counts once the job is done: a flash that is stopped half way helps nobody.
    pub fn call<T, E>(
        &mut self,
        silence: Duration,
        watch: Watch<'_>,
        job: impl FnOnce(&mut S, &Reporter<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<TransportError> + Send + 'static,
    {
        if let Some(waited) = self.stuck {
            return Err(TransportError::Stuck(waited).into());
        }
        let (sender, receiver) = mpsc::channel();
        let job: Job<S> = Box::new(move |state| {
            let report = |event| drop(sender.send(Message::Event(event)));
            let done = catch_unwind(AssertUnwindSafe(|| job(state, &Reporter(&report))));
            // Nobody listens any more where the caller has given the job up.
            let _ = sender.send(match done {
                Ok(done) => Message::Done(done),
                Err(payload) => Message::Panicked(told(&*payload)),
            });
        });
        let gone = || TransportError::Panicked("its thread ended".to_owned());
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).map_err(|_| gone())?;

        let mut heard = Instant::now();
        let mut stop = false;
        loop {
            match receiver.recv_timeout(WATCH_EVERY) {
                Ok(Message::Event(event)) => {
                    heard = Instant::now();
                    stop |= matches!(watch(Some(event)), ControlFlow::Break(()));
                }
                Ok(Message::Done(Ok(_))) if stop => return Err(TransportError::Interrupted.into()),
                Ok(Message::Done(done)) => return done,
                Ok(Message::Panicked(message)) => return Err(TransportError::Panicked(message).into()),
                Err(RecvTimeoutError::Timeout) => {
                    stop |= matches!(watch(None), ControlFlow::Break(()));
                    let waited = heard.elapsed();
                    if waited >= silence {
                        self.stuck = Some(waited);
                        return Err(TransportError::Stuck(waited).into());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Err(gone().into()),
            }
        }
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if self.stuck.is_some() {
            return;
        }
        // The channel closes when the thread ends; a probe that is stuck at the last moment must not
        // hold up whoever drops a session.
        if self.ended.recv_timeout(CLOSING) == Err(RecvTimeoutError::Disconnected)
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// What a panic said.
fn told(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "without a message".to_owned()).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Operation, Step};

    type Answer<T> = Result<T, TransportError>;

    fn go_on(_: Option<Event>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn jobs_share_a_state_and_return_what_they_find() {
        let mut worker = Worker::<u32>::start().unwrap();
        for round in 1..=3 {
            let count: Answer<u32> = worker.call(LONG, &mut go_on, |state, _| {
                *state += 1;
                Ok(*state)
            });
            assert_eq!(count.unwrap(), round);
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_next_job_works() {
        let mut worker = Worker::<u32>::start().unwrap();
        let error = worker.call(LONG, &mut go_on, |_, _| -> Answer<()> { panic!("of {}", "fear") });
        assert!(matches!(error, Err(TransportError::Panicked(text)) if text == "of fear"));
        let answer: Answer<u32> = worker.call(LONG, &mut go_on, |state, _| Ok(*state));
        assert_eq!(answer.unwrap(), 0);
    }

    #[test]
    fn silence_is_an_error_at_once_ever_after() {
        let (release, held) = mpsc::channel::<()>();
        let mut worker = Worker::<u32>::start().unwrap();
        let start = Instant::now();
        let error = worker.call(Duration::from_millis(100), &mut go_on, move |_, _| -> Answer<()> {
            let _ = held.recv();
            Ok(())
        });
        assert!(matches!(error, Err(TransportError::Stuck(_))));
        let again: Answer<()> = worker.call(LONG, &mut go_on, |_, _| Ok(()));
        assert!(matches!(again, Err(TransportError::Stuck(_))));
        drop(worker);
        assert!(start.elapsed() < LONG / 2);
        drop(release);
    }

    #[test]
    fn events_are_passed_on_and_count_as_life() {
        let mut worker = Worker::<u32>::start().unwrap();
        let mut told = 0;
        let done: Answer<()> = worker.call(
            Duration::from_millis(500),
            &mut |event| {
                told += u64::from(event.is_some());
                ControlFlow::Continue(())
            },
            |_, reporter| {
                for done in 0..8 {
                    thread::sleep(Duration::from_millis(100));
                    let (step, operation) = (Step::FlashModel, Operation::Program);
                    reporter.event(Event { step, operation, done, total: 8 });
                }
                Ok(())
            },
        );
        done.unwrap();
        assert_eq!(told, 8);
    }

    #[test]
    fn a_watch_that_says_stop_is_heard_when_the_job_is_done() {
        let mut worker = Worker::<bool>::start().unwrap();
        let stopped: Answer<()> = worker.call(LONG, &mut |_| ControlFlow::Break(()), |state, _| {
            thread::sleep(Duration::from_millis(200));
            *state = true;
            Ok(())
        });
        assert!(matches!(stopped, Err(TransportError::Interrupted)));
        let done: Answer<bool> = worker.call(LONG, &mut go_on, |state, _| Ok(*state));
        assert!(done.unwrap());
    }
}
