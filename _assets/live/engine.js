// What the figures are made of, for tests and for the curious: try it in the console.
const kernelRegimes = window.kernelRegimes ??= {}
kernelRegimes.engine = { kernel, eigen, flow, law, lawAt, Network, Ensemble, normals, erf }

// Every figure of the page.
const FIGURES = { playground }
document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("[data-live]").forEach(root => FIGURES[root.dataset.live](root)))
