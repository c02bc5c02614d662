-- A busted output handler: tells a person what failed, and writes what happened to the file that
-- $TEST_RESULTS names, one line a test. What a test prints cannot be taken for a result, and the
-- last `start` without an end is the test that crashed or hung.
local busted = require("busted")
local base = require("busted.outputHandlers.base")

local function text(message)
  if type(message) == "string" then
    return message
  end
  return require("pl.pretty").write(message)
end

local function place(element)
  local trace = element.trace
  if not (trace and trace.short_src) then
    return element.name or "?"
  end
  return trace.short_src .. (trace.currentline and ":" .. trace.currentline or "")
end

return function(options)
  local handler = base()
  local results = assert(io.open(assert(os.getenv("TEST_RESULTS"), "TEST_RESULTS is not set"), "w"))
  results:setvbuf("line")

  local function record(what, element)
    results:write(what, " ", (handler.getFullName(element):gsub("%c", " ")), "\n")
  end

  -- Where in the specs an error was raised, from the inside out.
  local function show_callers(traceback)
    for where in traceback:gmatch "\n%s*([^\n]-spec/[%w_/]+%.lua:%d+): in" do
      io.write("  from ", where, "\n")
    end
  end

  local function show(failure)
    io.write("FAILED ", failure.name, "\n  at ", place(failure.element), "\n")
    io.write("  ", (text(failure.message or "no message"):gsub("\n", "\n  ")), "\n")
    local traceback = failure.trace and failure.trace.traceback
    if traceback and options.verbose then
      io.write("  ", (traceback:gsub("\n", "\n  ")), "\n")
    elseif traceback then
      show_callers(traceback)
    end
    io.flush()
  end

  -- A test between its start and its end, and what was raised in it: by a deadline, that may be
  -- outside of what busted guards, and nobody is told of the end.
  local under_way, raised
  local last -- that had an end

  local function unended()
    if under_way then
      record("failed", under_way)
      show { name = handler.getFullName(under_way), element = under_way,
        message = raised and raised.message or "nothing was heard of its end",
        trace = raised and raised.trace }
      under_way, raised = nil, nil
    end
  end

  local function test_start(element)
    unended()
    record("start", element)
    under_way = element
    return nil, true
  end

  local function test_end(element, _, status)
    under_way, raised, last = nil, nil, element
    if status == "success" then
      record("passed", element)
    elseif status == "pending" then
      record("pending", element)
      io.write("pending: ", handler.getFullName(element), "\n")
    else
      record("failed", element)
      show(status == "failure" and handler.failures[#handler.failures]
        or handler.errors[#handler.errors])
    end
    return nil, true
  end

  -- What fails outside of a test: a spec that does not load, a setup, a teardown; what comes after
  -- each test is told with the one that it came after.
  local function outside(element, _, message, trace)
    if element.descriptor == "it" then
      raised = { message = message, trace = trace }
    else
      record("failed", element)
      show(handler.errors[#handler.errors])
      if last and element.descriptor == "after_each" then
        io.write("  after ", handler.getFullName(last), "\n")
      end
    end
    return nil, true
  end

  local function suite_end()
    unended()
    results:write("end\n")
    return nil, true
  end

  busted.subscribe({ "test", "start" }, test_start)
  busted.subscribe({ "test", "end" }, test_end)
  busted.subscribe({ "error" }, outside)
  busted.subscribe({ "failure" }, outside)
  busted.subscribe({ "suite", "end" }, suite_end)
  return handler
end
