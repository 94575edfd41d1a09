// Kernel gradient flow in closed form, and the law of infinitely wide networks, as `gradient_flow` and `ensemble_law`.
// The loss is half the mean square error, and time is learning rate times steps.

// Eigenvalues in ascending order and eigenvectors, the rows of `modes`, by Jacobi's rotations.
function eigen(matrix) {
  const n = matrix.length, a = matrix.map(row => Float64Array.from(row))
  const v = a.map((_, i) => Float64Array.from(a, (_, j) => (i === j ? 1 : 0)))
  for (let sweep = 0; sweep < 60; sweep++) {
    let rotated = false
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        // what does not change the sum of the two eigenvalues' sizes is rounding
        if (Math.abs(a[p][q]) > 1e-17 * (Math.abs(a[p][p]) + Math.abs(a[q][q]))) { rotate(a, v, p, q); rotated = true }
      }
    }
    if (!rotated) break
  }
  const order = [...a.keys()].sort((i, j) => a[i][i] - a[j][j])
  return { values: order.map(i => a[i][i]), modes: order.map(i => v[i]) }
}

// Make the entry (p, q) zero.
function rotate(a, v, p, q) {
  const ap = a[p], aq = a[q], vp = v[p], vq = v[q], apq = ap[q], app = ap[p], aqq = aq[q]
  const theta = (aqq - app) / (2 * apq), t = 1 / (theta + (theta < 0 ? -1 : 1) * Math.sqrt(1 + theta * theta))
  const c = 1 / Math.sqrt(1 + t * t), s = t * c
  for (let k = 0; k < ap.length; k++) {
    const akp = ap[k], akq = aq[k], vkp = vp[k], vkq = vq[k]
    ap[k] = c * akp - s * akq
    aq[k] = s * akp + c * akq
    vp[k] = c * vkp - s * vkq
    vq[k] = s * vkp + c * vkq
  }
  for (let k = 0; k < ap.length; k++) { a[k][p] = ap[k]; a[k][q] = aq[k] }
  ap[p] = app - t * apq
  aq[q] = aqq + t * apq
  ap[q] = aq[p] = 0
}

// Eigenvalues below the rounding of the kernel's entries are zero, as in the package.
function factored(matrix) {
  const { values, modes } = eigen(matrix), n = matrix.length, eps = Number.EPSILON
  const entry = Math.max(0, ...matrix.map(row => Math.max(...row.map(Math.abs))))
  const bound = 4 * eps * Math.sqrt(n) * entry + Math.max(n, 100) * eps * Math.abs(values[n - 1] ?? 0)
  return { values: values.map(value => (value > bound ? value : 0)), modes }
}

// (1 - exp(-lambda t)) / lambda; at zero t, or where that is infinite zero, as in the pseudo-inverse.
const filter = (value, time) => (value > 0 ? -Math.expm1(-value * time) / value : Number.isFinite(time) ? time : 0)

// The matrix of the flow on n training points, which takes y - f_0 to the weights w of f_t = f_0 + K(., X) w.
function flowMatrix({ values, modes }, t) {
  const filtered = values.map(value => filter(value, t / values.length))
  return modes.map((_, i) => modes.map((_, j) => modes.reduce((sum, mode, k) => sum + filtered[k] * mode[i] * mode[j], 0)))
}

const times = (matrix, v) => matrix.map(row => dot(row, v))

// The function at time t on the training points, from the start f0.
function flow(kernel, y, f0, t) {
  const weights = times(flowMatrix(factored(kernel), t), y.map((value, i) => value - f0[i]))
  return times(kernel, weights).map((change, i) => f0[i] + change)
}

// Mean and variance at time t where they are wanted. `spread` and `spectrum` are the NNGP and NTK on the training points,
// factored; `cross` the kernels {nngp, ntk} between the points wanted and these, `variances` the NNGP's at the former.
function lawAt({ spread, spectrum, cross, variances }, y, t) {
  const roots = spread.values.map(Math.sqrt), ofFlow = flowMatrix(spectrum, t)
  const weights = times(ofFlow, y), mean = times(cross.ntk, weights)
  const variance = cross.nngp.map((row, i) => {
    const memory = times(ofFlow, cross.ntk[i]) // how the function there follows what it lacks on the training points
    let sum = variances[i]
    spread.modes.forEach((mode, k) => {
      const known = roots[k] > 0 ? dot(mode, row) / roots[k] : 0
      sum += (known - roots[k] * dot(mode, memory)) ** 2 - known ** 2
    })
    return Math.max(0, sum)
  })
  return { mean, variance }
}

// The same, of the kernels of all points, the y.length training points first.
function law({ nngp, ntk }, y, t) {
  const n = y.length, corner = rows => rows.slice(0, n).map(row => row.slice(0, n)), below = rows => rows.slice(n).map(row => row.slice(0, n))
  return lawAt({
    spread: factored(corner(nngp)),
    spectrum: factored(corner(ntk)),
    cross: { nngp: below(nngp), ntk: below(ntk) },
    variances: nngp.slice(n).map((row, i) => row[n + i])
  }, y, t)
}
