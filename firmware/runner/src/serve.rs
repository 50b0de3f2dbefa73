//! The request loop.
//!
//! One request is read, handled and answered before the next is looked at. [`Runner::handle`] is
//! total: each request in each state has an answer, and a refused request changes nothing (a
//! refused `OpenModel` closes the model that was open).

use cbin_nn_model::{FormatError, Model};
use cbin_nn_protocol::{
    BoardError, COUNT_BYTES, Hello, MAX_CHUNK_BYTES, Opened, Ran, Request, Response, VERSION, decode, unframe,
};
use cortex_m::interrupt;

use crate::memory::{Memory, word};
use crate::span::Spans;
use crate::transport::{self, Sender};
use crate::{Board, stack};

/// Sets the board up and answers the host for ever.
///
/// The transport comes first, so that a set-up that fails can tell the host ([`crate::not_ready`]).
///
/// # Panics
///
/// When it is called a second time.
pub fn serve<B: Board>(set_up: impl FnOnce() -> B) -> ! {
    let Some(memory) = Memory::take() else {
        panic!("serve was called twice");
    };
    let (mut receiver, mut sender) = transport::start();
    let board = set_up();
    // Masked for good: `wfi` still wakes on a pending interrupt, and no handler can stretch a span
    // or write on the painted stack.
    interrupt::disable();
    let mut runner = Runner { spans: Spans::new(board), memory, open: None };
    loop {
        let frame = receiver.receive(|polls| runner.spans.board.idle(polls));
        let request =
            frame.and_then(|frame| unframe(frame).and_then(decode).map_err(|_| BoardError::BadFrame));
        match request {
            // By itself, so that no answer to another request lies on the stack under a run.
            Ok(Request::Run) => {
                let ran = runner.run();
                reply_ran(&mut sender, ran);
            }
            request => answer(&mut runner, &mut sender, request),
        }
    }
}

/// Handles a request that is not [`Request::Run`].
#[inline(never)]
fn answer<B: Board>(runner: &mut Runner<B>, sender: &mut Sender, request: Result<Request<'_>, BoardError>) {
    reply(sender, request.and_then(|request| runner.handle(request)));
}

#[inline(never)]
fn reply_ran(sender: &mut Sender, ran: Result<Ran, BoardError>) {
    reply(sender, ran.map(Response::Ran));
}

#[inline(never)]
fn reply(sender: &mut Sender, response: Result<Response<'_>, BoardError>) {
    sender.send(&response.unwrap_or_else(Response::Error));
}

/// The state between requests.
struct Runner<B> {
    spans: Spans<B>,
    memory: Memory,
    open: Option<Open>,
}

/// An open model and its place in the workspace.
struct Open {
    model: Model<'static>,
    carved: Carved,
    /// Bytes of the image that were written.
    written: usize,
    /// The output and the counts belong to this model and image.
    ran: bool,
}

/// How the workspace is divided, in order and in words. Each part begins at a multiple of 8 bytes.
#[derive(Clone, Copy)]
struct Carved {
    /// The arena, or all that a run in place takes.
    arena: usize,
    /// Where in it the image is, for a run in place.
    image: Option<usize>,
    /// The image beside the arena, otherwise.
    input: usize,
    output: usize,
    counts: usize,
}

/// The workspace, divided.
struct Parts<'a> {
    arena: &'a mut [u32],
    /// Empty where the image is in the arena.
    input: &'a mut [u8],
    output: &'a mut [u8],
    /// A `u64` for each operator, as two words.
    counts: &'a mut [[u32; 2]],
}

impl Carved {
    /// Divides a workspace of `available` words, or says how many are needed.
    fn new(model: &Model<'_>, available: usize) -> Result<Self, usize> {
        let (arena, image, input) = match model.in_place() {
            Some(plan) => (plan.bytes, Some(plan.image.start), 0),
            None => (model.arena_bytes(), None, model.input_bytes()),
        };
        let carved = Self {
            arena: words(arena),
            image,
            input: words(input),
            output: words(model.output_bytes()),
            counts: model.operator_count().saturating_mul(2),
        };
        let needed = carved
            .arena
            .saturating_add(carved.input)
            .saturating_add(carved.output)
            .saturating_add(carved.counts);
        if needed <= available { Ok(carved) } else { Err(needed) }
    }

    /// The parts of the workspace; `None` can't happen for the workspace it was made for.
    fn parts<'a>(&self, model: &Model<'_>, workspace: &'a mut [u32]) -> Option<Parts<'a>> {
        let (arena, rest) = workspace.split_at_mut_checked(self.arena)?;
        let (input, rest) = rest.split_at_mut_checked(self.input)?;
        let (output, rest) = rest.split_at_mut_checked(self.output)?;
        let (counts, _) = rest.split_at_mut_checked(self.counts)?;
        Some(Parts {
            arena,
            input: match self.image {
                Some(_) => &mut [],
                None => bytemuck::cast_slice_mut(input).get_mut(..model.input_bytes())?,
            },
            output: bytemuck::cast_slice_mut(output).get_mut(..model.output_bytes())?,
            counts: bytemuck::cast_slice_mut(counts),
        })
    }
}

// What a request needs of the stack should not lie under every other request: the figure that `Run`
// reports would hold the frames of the model's check. Hence the `inline(never)`.
impl<B: Board> Runner<B> {
    /// Answers one request.
    fn handle(&mut self, request: Request<'_>) -> Result<Response<'_>, BoardError> {
        match request {
            Request::Hello => Ok(Response::Hello(self.hello())),
            Request::CloseModel => {
                self.open = None;
                Ok(Response::Closed)
            }
            Request::OpenModel { bytes } => self.open(bytes).map(Response::Opened),
            Request::WriteInput { offset, data } => {
                self.write_input(offset, data)?;
                Ok(Response::InputWritten)
            }
            Request::Run => self.run().map(Response::Ran),
            Request::ReadOutput { offset, bytes } => {
                let parts = self.results()?;
                let data = piece(parts.output, offset, bytes)?;
                Ok(Response::Output { data })
            }
            Request::ReadCounts { first } => {
                let counts = bytemuck::cast_slice::<_, u8>(self.results()?.counts);
                let operators = word(counts.len() / COUNT_BYTES);
                if first > operators {
                    return Err(BoardError::OutOfRange { end: first, limit: operators });
                }
                let rest = counts.get(first as usize * COUNT_BYTES..).unwrap_or(&[]);
                let most = MAX_CHUNK_BYTES / COUNT_BYTES * COUNT_BYTES;
                let data = rest.get(..most).unwrap_or(rest);
                Ok(Response::Counts { first, data })
            }
            Request::Spin { iterations } => Ok(Response::Spun { count: self.spans.spin(iterations) }),
        }
    }

    #[inline(never)]
    fn hello(&self) -> Hello<'static> {
        let memory = &self.memory;
        Hello {
            version: version(),
            runner_version: env!("CARGO_PKG_VERSION"),
            board: self.spans.board.name(),
            counter: self.spans.board.counter(),
            counter_resolution: B::UNITS_PER_TICK,
            model_address: memory.model_address(),
            model_bytes: memory.model_bytes(),
            workspace_bytes: word(memory.workspace.len().saturating_mul(4)),
            stack_bytes: stack::room(),
            ram_transport_bytes: memory.transport_bytes(),
            ram_other_bytes: memory.ram_bytes(),
            code_bytes: memory.code_bytes(),
        }
    }

    #[inline(never)]
    fn open(&mut self, bytes: u32) -> Result<Opened, BoardError> {
        self.open = None;
        let bytes = self
            .memory
            .model(bytes)
            .map_err(|available| BoardError::ModelTooLarge { needed: bytes, available })?;
        let model = Model::new_checked(bytes).map_err(|error| match error {
            FormatError::NotBuilt { index } => BoardError::OperatorNotBuilt { index: word(index) },
            error => BoardError::BadModel { code: error.code() },
        })?;
        let words = self.memory.workspace.len();
        let carved = Carved::new(&model, words).map_err(|needed| BoardError::ArenaTooSmall {
            needed: word(needed.saturating_mul(4)),
            available: word(words.saturating_mul(4)),
        })?;
        let opened = Opened {
            operators: word(model.operator_count()),
            arena_bytes: word(match model.in_place() {
                Some(plan) => plan.bytes - plan.image.len(),
                None => model.arena_bytes(),
            }),
            input_bytes: word(model.input_bytes()),
            output_bytes: word(model.output_bytes()),
        };
        self.open = Some(Open { model, carved, written: 0, ran: false });
        Ok(opened)
    }

    /// The open model and its parts of the workspace.
    fn opened(&mut self) -> Result<(&mut Open, Parts<'_>), BoardError> {
        let open = self.open.as_mut().ok_or(BoardError::NoModel)?;
        let parts = open.carved.parts(&open.model, self.memory.workspace).ok_or(BoardError::NoModel)?;
        Ok((open, parts))
    }

    /// What the last run left.
    fn results(&mut self) -> Result<Parts<'_>, BoardError> {
        let (open, parts) = self.opened()?;
        if open.ran { Ok(parts) } else { Err(BoardError::NotRun) }
    }

    #[inline(never)]
    fn write_input(&mut self, offset: u32, data: &[u8]) -> Result<(), BoardError> {
        let (open, parts) = self.opened()?;
        let start = offset as usize;
        if start != 0 && start != open.written {
            return Err(BoardError::OutOfOrder { offset, expected: word(open.written) });
        }
        let end = start.saturating_add(data.len());
        let bytes = open.model.input_bytes();
        let image = match open.carved.image {
            Some(image) => bytemuck::cast_slice_mut(parts.arena).get_mut(image..image.saturating_add(bytes)),
            None => Some(parts.input),
        };
        let place = image
            .and_then(|image| image.get_mut(start..end))
            .ok_or(BoardError::OutOfRange { end: word(end), limit: word(bytes) })?;
        place.copy_from_slice(data);
        open.written = end;
        open.ran = false;
        Ok(())
    }

    #[inline(never)]
    fn run(&mut self) -> Result<Ran, BoardError> {
        let open = self.open.as_mut().ok_or(BoardError::NoModel)?;
        let parts = open.carved.parts(&open.model, self.memory.workspace).ok_or(BoardError::NoModel)?;
        let needed = open.model.input_bytes();
        if open.written < needed {
            return Err(BoardError::InputIncomplete { written: word(open.written), needed: word(needed) });
        }
        open.ran = false;
        let input = match open.carved.image {
            // The run writes over the image.
            Some(_) => {
                open.written = 0;
                None
            }
            None => Some(&*parts.input),
        };
        parts.counts.fill([0; 2]);
        let mut recorder = self.spans.observe(parts.counts);
        stack::paint();
        open.model
            .run_on(input, parts.output, parts.arena, &mut recorder)
            .map_err(|_| BoardError::RunFailed)?;
        let stack_bytes = stack::high_water();
        let total = recorder.total;
        open.ran = true;
        Ok(Ran { total, stack_bytes })
    }
}

/// The protocol's version, behind a mark: a test turns it back in a copy of an image, which is then a
/// runner of an older protocol in all that the host can see.
fn version() -> u16 {
    #[repr(C)]
    struct Marked {
        mark: [u8; 16],
        version: u16,
    }
    static VERSION_MARK: Marked = Marked { mark: *b"cbin-nn-protocol", version: VERSION };
    // SAFETY: a static, read like any other; volatile, so that the mark stays beside what is used.
    let marked = unsafe { (&raw const VERSION_MARK).read_volatile() };
    let _ = marked.mark;
    marked.version
}

/// Words for so many bytes: an even number, so that the next part can hold 64-bit integers too.
fn words(bytes: usize) -> usize {
    bytes.div_ceil(8).saturating_mul(2)
}

/// A piece of `bytes`, cut to what one message holds.
fn piece(bytes: &[u8], offset: u32, length: u32) -> Result<&[u8], BoardError> {
    let start = offset as usize;
    let end = start.saturating_add(length as usize);
    if end > bytes.len() {
        return Err(BoardError::OutOfRange { end: word(end), limit: word(bytes.len()) });
    }
    let end = end.min(start.saturating_add(MAX_CHUNK_BYTES));
    Ok(bytes.get(start..end).unwrap_or(&[]))
}
