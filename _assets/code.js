// One switch unfolds the code of all cells, on all pages, and the choice is remembered.
const ALL_CODE = "all-code"

function showAllCode(open) {
  document.querySelectorAll("details.hide").forEach(details => { details.open = open })
  document.querySelectorAll(".btn-all-code-button").forEach(button => button.setAttribute("aria-pressed", open))
}

function toggleAllCode() {
  const open = localStorage.getItem(ALL_CODE) !== "true"
  localStorage.setItem(ALL_CODE, open)
  showAllCode(open)
}

// What is linked to, such as a claim, may be folded away.
function unfoldTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)))
  for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true
  target?.scrollIntoView()
}

if (localStorage.getItem(ALL_CODE) === "true") showAllCode(true)
if (location.hash) unfoldTarget()
addEventListener("hashchange", unfoldTarget)

// Keys scroll what is wider than the page. The theme sees to that for what is not folded.
addEventListener("toggle", ({ target }) => target.querySelectorAll("pre").forEach(pre => {
  if (pre.scrollWidth > pre.clientWidth) pre.tabIndex = 0
}), true)
