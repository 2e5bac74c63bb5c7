//! From the target directory to the directories in it, never through a link.

use std::io;
use std::path::Path;

use super::shown;
use crate::error::{IoContext, refuse};
use crate::platform::{Dir, Kind};
use crate::{Refusal, StoreError};

/// Opens directories by path, component by component, and keeps those on the way to the last one open: entries of a
/// manifest mostly come one after the other from the same directory.
pub(super) struct Walker<'a> {
    shown: &'a Path,
    root: &'a Dir,
    open: Vec<(Vec<u8>, Dir)>,
}

impl<'a> Walker<'a> {
    pub(super) fn new(shown: &'a Path, root: &'a Dir) -> Walker<'a> {
        Walker { shown, root, open: Vec::new() }
    }

    /// The directory at `path`, the target directory itself if that is empty; `None` if there is none.
    pub(super) fn find(&mut self, path: &[u8]) -> Result<Option<&Dir>, StoreError> {
        self.walk(path, None)
    }

    /// The directory at `path`, made with `mode` if there is none; missing directories above it get the usual mode.
    pub(super) fn find_or_make(&mut self, path: &[u8], mode: u32) -> Result<&Dir, StoreError> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let shown = shown(self.shown, path);
        self.walk(path, Some(mode))?.ok_or_else(missing).on("create", &shown)
    }

    fn walk(&mut self, path: &[u8], make: Option<u32>) -> Result<Option<&Dir>, StoreError> {
        let components: Vec<&[u8]> =
            path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
        let common =
            self.open.iter().zip(&components).take_while(|((open, _), wanted)| open == *wanted).count();
        self.open.truncate(common);
        for (depth, name) in components.iter().enumerate().skip(common) {
            let shown = || shown(self.shown, &components[..=depth].join(&b'/'));
            let above = self.open.last().map_or(self.root, |(_, dir)| dir);
            let entered = match above.enter(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let Some(mode) = make else { return Ok(None) };
                    let mode = if depth + 1 == components.len() { mode } else { 0o777 };
                    match above.make_dir(name, mode) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(error).on("create", &shown());
                        }
                        _ => above.enter(name),
                    }
                }
                entered => entered,
            };
            let dir = match entered {
                Ok(dir) => dir,
                Err(error) => match above.stat(name).on("inspect", &shown())?.map(|stat| stat.kind) {
                    Some(Kind::Symlink) => return Err(refuse(shown(), Refusal::SymlinkedParent)),
                    Some(Kind::File | Kind::Special(_)) => {
                        return Err(refuse(shown(), Refusal::NotADirectory));
                    }
                    Some(Kind::Directory) | None => return Err(error).on("open", &shown()),
                },
            };
            self.open.push((name.to_vec(), dir));
        }
        Ok(Some(self.open.last().map_or(self.root, |(_, dir)| dir)))
    }
}
