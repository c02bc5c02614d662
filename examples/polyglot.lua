-- The same sum in every language that this machine has, side by side in one sandbox.
--
--     lua5.4 examples/polyglot.lua

local moonsand = require "moonsand"

local programs = {
  python = "print(sum(range(101)))",
  node = "console.log([...Array(101).keys()].reduce((a, b) => a + b))",
  typescript = "const n: number = 101; console.log([...Array(n).keys()].reduce((a, b) => a + b))",
  bash = "s=0; for i in {1..100}; do ((s += i)); done; echo $s",
  sh = "seq -s + 100 | sed 's/.*/echo $((&))/' | sh",
  lua = "local s = 0 for i = 1, 100 do s = s + i end print(s)",
  ruby = "puts (1..100).sum",
  perl = 'my $s; $s += $_ for 1..100; print "$s\\n"',
  php = 'echo array_sum(range(1, 100)), "\\n";',
  go = 'package main\nimport "fmt"\n'
    .. "func main() { s := 0; for i := 1; i <= 100; i++ { s += i }; fmt.Println(s) }",
  rust = 'fn main() { println!("{}", (1..=100).sum::<i32>()) }',
  java = "class Sum { public static void main(String[] a) {"
    .. " System.out.println(java.util.stream.IntStream.rangeClosed(1, 100).sum()); } }",
  c = "#include <stdio.h>\nint main(void) { int s = 0; for (int i = 1; i <= 100; i++) s += i;"
    .. ' printf("%d\\n", s); }',
  cpp = "#include <iostream>\nint main() { int s = 0; for (int i = 1; i <= 100; i++) s += i;"
    .. " std::cout << s << std::endl; }",
}

moonsand.with({}, function(box)
  local languages = moonsand.assert(box:languages())
  local results = moonsand.assert(moonsand.all(languages, function(language)
    local opts = { language = language.name, timeout = 60, check = true }
    return box:run_code(programs[language.name], opts)
  end, { limit = 4, settle = true }))
  for i, language in ipairs(languages) do
    local answer = results[i]
    print(("%-11s %-22s %s"):format(language.name, language.version or "",
      answer.ok and ("%s in %.0f ms"):format(answer.value.output, answer.value.duration * 1000)
      or answer.message))
  end
end)
