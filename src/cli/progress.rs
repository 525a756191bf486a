//! How long work is coming on, on standard error: after two seconds a bar on a terminal, every five seconds a line elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use crate::wire::ProgressLine;

use super::output::{note, plain};

/// Work that is done sooner says nothing.
const PATIENCE: Duration = Duration::from_secs(2);
const LINE_EVERY: Duration = Duration::from_secs(5);
const BAR_EVERY: Duration = Duration::from_millis(100);

/// Does the work that `ask` begins, and shows what it says of itself.
pub(super) async fn shown<T, F: Future<Output = T>>(ask: impl FnOnce(watch::Sender<Option<ProgressLine>>) -> F) -> T {
    let (say, said) = watch::channel(None);
    let shown = async { if is_for_a_person() { as_bar(said).await } else { as_lines(said).await } };
    tokio::select! {
        result = ask(say) => result,
        never = shown => match never {},
    }
}

/// A terminal that can draw over itself.
#[expect(clippy::disallowed_methods, reason = "what a terminal can do is said by the environment; no setting of ours")]
fn is_for_a_person() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    std::io::stderr().is_terminal() && !dumb && !is_set("NO_COLOR")
}

async fn as_lines(said: watch::Receiver<Option<ProgressLine>>) -> std::convert::Infallible {
    let mut ticks = ticks(PATIENCE, LINE_EVERY);
    loop {
        ticks.tick().await;
        if let Some(progress) = said.borrow().as_ref() {
            note(&line(progress));
        }
    }
}

async fn as_bar(said: watch::Receiver<Option<ProgressLine>>) -> std::convert::Infallible {
    let mut ticks = ticks(PATIENCE, BAR_EVERY);
    ticks.tick().await;
    // Dropped with this future, however the work ends, so that nothing of it stays on the terminal.
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let known = style("{msg} {wide_bar} {pos}/{len}");
    let unknown = style("{spinner} {msg} {pos}");
    let _cleared = Cleared(bar.clone());
    loop {
        if let Some(progress) = said.borrow().as_ref() {
            bar.set_style(if progress.total.is_some() { known.clone() } else { unknown.clone() });
            bar.set_message(plain(&progress.step));
            progress.total.map_or_else(|| bar.unset_length(), |total| bar.set_length(total));
            bar.set_position(progress.done);
        }
        bar.tick();
        ticks.tick().await;
    }
}

struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are the two above; were one wrong, a plain bar is as good.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn ticks(first: Duration, every: Duration) -> Interval {
    let mut ticks = interval_at(tokio::time::Instant::now() + first, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn line(progress: &ProgressLine) -> String {
    match progress.total {
        Some(total) => format!("{}: {} of {total}", progress.step, progress.done),
        None => format!("{}: {}", progress.step, progress.done),
    }
}
