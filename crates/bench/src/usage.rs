//! What a process uses, as the system accounts for it.

use anyhow::Context;
use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// Watches one process.
#[derive(Debug)]
pub struct Meter {
    pid: u32,
    /// CPU time of each thread when it was last looked at: that of threads which have ended stays counted.
    threads: HashMap<String, Duration>,
}

/// Memory that is resident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes now.
    pub now: u64,
    /// The most there ever was.
    pub peak: u64,
}

impl Meter {
    /// Watches the process `pid`.
    pub fn new(pid: u32) -> Self {
        Self { pid, threads: HashMap::new() }
    }

    /// Returns the CPU time that the process has used so far, by the scheduler's own count: the one in clock ticks is
    /// too coarse for milliseconds.
    ///
    /// # Errors
    ///
    /// If there is no such process.
    pub fn cpu(&mut self) -> anyhow::Result<Duration> {
        let tasks = format!("/proc/{}/task", self.pid);
        for task in fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
            let name = task?.file_name().to_string_lossy().into_owned();
            let Ok(text) = fs::read_to_string(format!("{tasks}/{name}/schedstat")) else { continue };
            let nanos = text.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or_default();
            self.threads.insert(name, Duration::from_nanos(nanos));
        }
        Ok(self.threads.values().sum())
    }

    /// Returns the memory of the process.
    ///
    /// # Errors
    ///
    /// If there is no such process.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        let path = format!("/proc/{}/status", self.pid);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
        };
        let missing = || format!("{path} has no memory sizes");
        Ok(Memory {
            now: field("VmRSS:").with_context(missing)?,
            peak: field("VmHWM:").with_context(missing)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let mut meter = Meter::new(std::process::id());
        let before = meter.cpu().unwrap();
        let mut sum = 0_u64;
        while meter.cpu().unwrap() < before + Duration::from_millis(5) {
            sum = std::hint::black_box(sum + 1);
        }
        let memory = meter.memory().unwrap();
        assert!(memory.now > 0 && memory.peak >= memory.now);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(Meter::new(u32::MAX).cpu().is_err());
        assert!(Meter::new(u32::MAX).memory().is_err());
    }
}
