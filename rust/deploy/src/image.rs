//! A runner's image: what board it is for, what it occupies, and where it keeps what the host needs.
//!
//! All of it is read from the ELF file, so that the host has no second copy of a board's memory map
//! that could disagree with the image.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use cbin_nn_model::{Model, aligned::AlignedBytes};
use object::{
    LittleEndian, Object, ObjectSymbol,
    elf::PT_LOAD,
    read::elf::{ElfFile32, ProgramHeader},
};

use crate::{Board, DeployError};

/// A larger image than any runner, in bytes: a limit on what is read to be checked.
const RUNNER_MAX: u64 = 64 << 20;

/// A runner's image.
#[derive(Debug, Clone)]
pub struct RunnerImage {
    /// The file's absolute path.
    pub path: PathBuf,
    /// What is loaded, each piece with its address, in the file's order.
    pub segments: Vec<(u32, Vec<u8>)>,
    /// Address of the RTT control block.
    pub rtt: u32,
    /// Address of the model region.
    pub model_address: u32,
    /// Bytes of the model region.
    pub model_bytes: u32,
    /// Bytes that arena, image, output and counts may take together.
    pub workspace_bytes: u32,
}

impl RunnerImage {
    /// Reads a file, and checks that it is a runner for this board.
    pub fn read(board: &Board, path: &Path) -> Result<Self, DeployError> {
        let unreadable =
            |source| DeployError::RunnerMissing { board: board.name, path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(RUNNER_MAX).read_to_end(&mut bytes))
            .map_err(unreadable)?;
        let absolute = path.canonicalize().map_err(unreadable)?;
        let invalid =
            |reason| DeployError::RunnerInvalid { board: board.name, path: path.to_owned(), reason };
        match fault(board.name, &bytes) {
            None => Self::parse(absolute, &bytes).map_err(|reason| invalid(format!("damaged ({reason})"))),
            Some(reason) => Err(invalid(reason)),
        }
    }

    fn parse(path: PathBuf, bytes: &[u8]) -> Result<Self, String> {
        let elf = ElfFile32::<LittleEndian>::parse(bytes).map_err(|error| error.to_string())?;
        let symbol = |name: &str| {
            let address = elf.symbol_by_name(name).map(|symbol| symbol.address());
            address.and_then(|address| u32::try_from(address).ok()).ok_or(format!("no symbol {name}"))
        };
        let mut segments = Vec::new();
        for header in elf.elf_program_headers() {
            let data = header.data(LittleEndian, bytes).map_err(|()| "a segment is cut short")?;
            if header.p_type(LittleEndian) == PT_LOAD && !data.is_empty() {
                segments.push((header.p_paddr(LittleEndian), data.to_owned()));
            }
        }
        Ok(Self {
            path,
            segments,
            rtt: symbol("_SEGGER_RTT")?,
            model_address: symbol("__cbin_nn_model")?,
            model_bytes: symbol("__cbin_nn_model_bytes")?,
            workspace_bytes: symbol("__cbin_nn_workspace_bytes")?,
        })
    }

    /// Checks that a board with this image can hold and run a model, before anything is written to it.
    ///
    /// # Errors
    ///
    /// The model is damaged, or one of the two regions is too small for it.
    pub fn check_model(&self, board: &Board, model: &[u8]) -> Result<(), DeployError> {
        check_model(board, model, self.model_bytes, self.workspace_bytes)
    }
}

/// Checks a model against a board's two regions.
pub fn check_model(board: &Board, model: &[u8], region: u32, workspace: u32) -> Result<(), DeployError> {
    let board = board.name;
    if model.len() as u64 > u64::from(region) {
        let (needed, available) = (model.len() as u64, region.into());
        return Err(DeployError::ModelTooLarge { board, needed, available });
    }
    // The check wants the alignment that the board's region has.
    let bytes = AlignedBytes::copy_of(model);
    let view = Model::new_checked(&bytes).map_err(|source| DeployError::ModelInvalid { board, source })?;
    // As the runner divides it: each part begins at a multiple of 8 bytes, and a count has 8. The image is in the arena or
    // beside it.
    let (arena, input) = match view.in_place() {
        Some(plan) => (plan.bytes, 0),
        None => (view.arena_bytes(), view.input_bytes()),
    };
    let parts = [arena, input, view.output_bytes(), view.operator_count() * 8];
    let needed: u64 = parts.iter().map(|&bytes| (bytes as u64).next_multiple_of(8)).sum();
    if needed > u64::from(workspace) {
        return Err(DeployError::ArenaTooSmall { board, needed, available: workspace.into() });
    }
    Ok(())
}

/// What is wrong with a runner's image, if anything is.
fn fault(board: &str, bytes: &[u8]) -> Option<String> {
    // ELF: magic, 32 bits, little-endian; e_type 2 (executable) and e_machine 40 (Arm).
    if bytes.get(..4) != Some(b"\x7FELF") {
        return Some("not an ELF file".into());
    }
    if bytes.get(4..6) != Some(&[1, 1]) || bytes.get(16..20) != Some(&[2, 0, 40, 0]) {
        return Some("not a program for 32-bit Arm".into());
    }
    // The mark is in a section of its own that is not loaded; nothing else in a runner spells it.
    const MARK: &[u8] = b"cbin-nn-runner board=";
    let Some(at) = bytes.windows(MARK.len()).position(|window| window == MARK) else {
        return Some("not a cbin-nn runner".into());
    };
    let rest = &bytes[at + MARK.len()..];
    let name = rest.split(|&byte| byte == b';').next().unwrap_or_default();
    if name == board.as_bytes() {
        return None;
    }
    let name = &name[..name.len().min(64)];
    Some(format!("a runner for board {:?}", String::from_utf8_lossy(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(mark: &str) -> Vec<u8> {
        let mut bytes = vec![0; 20];
        bytes[..6].copy_from_slice(b"\x7FELF\x01\x01");
        bytes[16..].copy_from_slice(&[2, 0, 40, 0]);
        bytes.extend_from_slice(mark.as_bytes());
        bytes
    }

    #[test]
    fn a_runner_is_known_by_its_mark() {
        let fault = |bytes: &[u8]| fault("this", bytes);
        assert_eq!(fault(&elf("..cbin-nn-runner board=this;..")), None);
        assert_eq!(fault(&elf("cbin-nn-runner board=other;")).unwrap(), "a runner for board \"other\"");
        assert_eq!(fault(&elf("")).unwrap(), "not a cbin-nn runner");
        assert_eq!(fault(b"#!/bin/sh").unwrap(), "not an ELF file");
        assert_eq!(fault(b"").unwrap(), "not an ELF file");
        let mut host = elf("");
        host[4] = 2;
        assert_eq!(fault(&host).unwrap(), "not a program for 32-bit Arm");
        assert_eq!(fault(&host[..8]).unwrap(), "not a program for 32-bit Arm");
    }

    #[test]
    fn damage_behind_the_mark_is_an_error() {
        let bytes = elf("cbin-nn-runner board=this;");
        assert!(RunnerImage::parse(PathBuf::new(), &bytes).is_err());
    }
}
