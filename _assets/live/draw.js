// Pictures in SVG and controls in HTML, for all figures. Colours come from live.css, light and dark.

const SVG = "http://www.w3.org/2000/svg"

// An element with attributes and children; attributes that start with "on" are listeners.
function element(tag, attributes = {}, ...children) {
  const [name, space] = tag.startsWith("svg:") ? [tag.slice(4), SVG] : [tag, "http://www.w3.org/1999/xhtml"]
  const made = document.createElementNS(space, name)
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value)
    else if (value !== false) made.setAttribute(key, value === true ? "" : value)
  }
  made.append(...children)
  return made
}

const set = (target, attributes) => { for (const [key, value] of Object.entries(attributes)) target.setAttribute(key, value) }

// A plot: axes of two ranges, with what is drawn in `inside`, and functions from numbers to pixels and back.
class Plot {
  constructor(label, { x, y, xLabel = "", yLabel = "", height = 300, width = 640, xTicks = [], yTicks = null, left = 44, log = false }) {
    const margin = { left, right: 10, top: 10, bottom: 38 }
    Object.assign(this, { x, y, width, height, margin, log })
    this.axes = element("svg:g", { class: "live-axes" })
    this.inside = element("svg:g", { "clip-path": `url(#${(this.id = `live-${Plot.count++}`)})` })
    const clip = element("svg:clipPath", { id: this.id }, element("svg:rect", {
      x: margin.left, y: margin.top - 4, width: width - margin.left - margin.right, height: height - margin.top - margin.bottom + 8 }))
    this.root = element("svg:svg", { viewBox: `0 0 ${width} ${height}`, class: "live-plot", role: "group", "aria-label": label }, clip, this.axes, this.inside)
    this.labels = { xLabel, yLabel, xTicks, yTicks }
    this.drawAxes()
  }

  toX(value) {
    const [low, high] = this.x.map(v => this.scaled(v)), { left, right } = this.margin
    return left + (this.scaled(value) - low) / (high - low) * (this.width - left - right)
  }

  toY(value) {
    const { top, bottom } = this.margin
    return this.height - bottom - (value - this.y[0]) / (this.y[1] - this.y[0]) * (this.height - top - bottom)
  }

  scaled(v) {
    return this.log ? Math.log10(v) : v
  }

  // The numbers at a place on the screen.
  at(event) {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.root.getScreenCTM().inverse())
    const { left, right, top, bottom } = this.margin
    const part = (place.x - left) / (this.width - left - right)
    return [this.x[0] + part * (this.x[1] - this.x[0]), this.y[1] - (place.y - top) / (this.height - top - bottom) * (this.y[1] - this.y[0])]
  }

  drawAxes() {
    const { xTicks, yTicks, xLabel, yLabel } = this.labels, { left, right, top, bottom } = this.margin
    const [x0, x1, y0, y1] = [left, this.width - right, this.height - bottom, top]
    const ticks = yTicks ?? [Math.ceil(this.y[0]), 0, Math.floor(this.y[1])]
    this.axes.replaceChildren(
      element("svg:path", { d: `M${x0} ${y1}V${y0}H${x1}` }),
      ...xTicks.map(([value, text]) => element("svg:text", { x: this.toX(value), y: y0 + 15, "text-anchor": "middle" }, text)),
      ...ticks.map(value => element("svg:text", { x: x0 - 6, y: this.toY(value) + 4, "text-anchor": "end" }, String(value).replace("-", "−"))),
      element("svg:text", { x: (x0 + x1) / 2, y: this.height - 5, "text-anchor": "middle" }, xLabel),
      element("svg:text", { x: 12, y: (y0 + y1) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(y0 + y1) / 2})` }, yLabel)
    )
  }

  path(xs, ys) {
    let d = ""
    for (let i = 0; i < xs.length; i++) d += `${i ? "L" : "M"}${this.toX(xs[i]).toFixed(1)} ${this.toY(clamped(ys[i])).toFixed(1)}`
    return d
  }

  band(xs, low, high) {
    return `${this.path(xs, low)}${this.path([...xs].reverse(), [...high].reverse()).replace("M", "L")}Z`
  }

  curve(name) {
    return this.inside.appendChild(element("svg:path", { class: `live-${name}`, d: "" }))
  }
}
Plot.count = 0

const clamped = value => Math.max(-1e4, Math.min(1e4, value))

// A slider with its name and its value in words.
function slider(name, { min, max, step, value, text = String, onchange }) {
  const output = element("output", {}, text(value))
  const input = element("input", { type: "range", min, max, step, value, "aria-valuetext": text(value) })
  const show = () => { output.textContent = text(Number(input.value)); set(input, { "aria-valuetext": output.textContent }) }
  input.addEventListener("input", () => { show(); onchange(Number(input.value)) })
  return { root: element("label", { class: "live-control" }, element("span", {}, name), input, output),
    set value(v) { input.value = v; show() } }
}

// A choice among a few.
function choice(name, options, value, onchange) {
  const input = element("select", { onchange: () => onchange(input.value) }, ...options.map(([key, text]) => element("option", { value: key, selected: key === value }, text)))
  return { root: element("label", { class: "live-control" }, element("span", {}, name), input),
    set value(v) { input.value = v } }
}

function toggle(name, value, onchange) {
  const input = element("input", { type: "checkbox", checked: value, onchange: () => onchange(input.checked) })
  return { root: element("label", { class: "live-control live-toggle" }, input, element("span", {}, name)),
    set value(v) { input.checked = v } }
}

const button = (text, onclick) => element("button", { type: "button", onclick }, text)

// Call `frame` for every picture of the screen while it says so and the figure is in view.
function animated(root, frame) {
  let running = false, visible = false
  const tick = () => { running = visible && frame(); if (running) requestAnimationFrame(tick) }
  const wake = () => { if (!running && visible) { running = true; requestAnimationFrame(tick) } }
  new IntersectionObserver(entries => { visible = entries[entries.length - 1].isIntersecting; wake() }).observe(root)
  return wake
}

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches
