//! `/livez`: the process serves. Whether it is of use is `/readyz`'s to say, which comes with path probes.

use axum::Router;
use axum::routing::get;

use crate::supervisor::Shared;

pub(super) fn router(supervisor: Shared) -> Router {
    Router::new().route("/livez", get(livez)).with_state(supervisor)
}

/// 200 as long as the supervisor can be asked: a reload that hangs would show here.
async fn livez(axum::extract::State(supervisor): axum::extract::State<Shared>) -> String {
    let supervisor = supervisor.lock().await;
    format!("alive, generation {}\n", supervisor.generation)
}
