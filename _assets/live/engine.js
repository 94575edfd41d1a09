// What the figures are made of, for tests and for the curious: try it in the console.
const kernelRegimes = window.kernelRegimes ??= {}
kernelRegimes.engine = { kernel, eigen, flow, law, lawAt, Network, Ensemble, normals, erf }
